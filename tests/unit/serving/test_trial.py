import asyncio
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from deployed import deployment, version
from penstock.handover import ServingPolicy
from penstock.serving import rollout_files, trial
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.prediction_log import Asked
from penstock.serving.protocols import Scored
from penstock.serving.rollout import RolloutPlan
from penstock.serving.rollout_files import LEASE_S, Rollout, now
from penstock.serving.trial import Trial, TrialArguments
from penstock.settings import Settings
from waiting import wait_for

Row = dict[str, Any]
SHORT_MS = 40.0


class FakeArm:
    """A version whose scores a function gives: each row's own, where nothing else is said."""

    def __init__(self, **serving: Any) -> None:
        policy = ServingPolicy(**serving)
        self.signature = SimpleNamespace(model="spills", threshold=0.5, serving=policy)
        self.version = 2
        self.score: Callable[[Row], float] = lambda row: row["score"]
        self.told: list[bool] = []
        self.metrics = SimpleNamespace(
            watch=lambda **_: None, tell_soon=lambda: self.told.append(True)
        )
        self.sizes: list[int] = []
        self.is_closed = False

    def scoring(self, requests: Sequence[Asked]) -> Generator[None, None, Scored]:
        self.sizes.append(len(requests))
        rows = [row for request in requests for row in request.rows]
        yield
        missing = [row.get("missing", []) for row in rows]
        return Scored(scores=np.array([self.score(row) for row in rows]), missing=missing)

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A replica's trial, the rollout that it follows, and what it reports."""

    def __init__(
        self, settings: Settings, *, is_shadow: bool, old: FakeArm, answer_within_ms: float
    ) -> None:
        arguments = TrialArguments(
            rollout_id="r1",
            is_shadow=is_shadow,
            split_by="station",
            answer_within_ms=answer_within_ms,
            version=2,
            digest="d",
            package_path="p",
        )
        self.settings = settings
        rollout_files.begin(settings, rollout_of())
        self.trial = Trial(settings, arguments, old, max_body_bytes=1 << 20)
        self.arm: FakeArm = self.trial.arm

    def rolls(self, percent: float, **changes: Any) -> None:
        """Say how the rollout stands; the replica has looked."""
        rollout_files.write(self.settings, rollout_of(share_percent=percent, **changes))
        self.trial._look()

    @property
    def percent(self) -> float:
        return self.trial.describe()["percent"]

    def taken(self, num_stations: int = 400) -> set[int]:
        return {n for n in range(num_stations) if self.trial.takes([{"station": n}])}

    def counts(self) -> rollout_files.Report:
        self.rolls(0)
        (report,) = rollout_files.reports(self.settings, rollout_of())
        return report

    @property
    def new(self) -> ArmCounts:
        return self.counts().new


def rollout_of(**changes: Any) -> Rollout:
    plan = RolloutPlan(
        model="spills", from_version=1, to_version=2, shares_percent=(5,), hold_s=1, split_by="s"
    )
    made = Rollout(
        id="r1",
        plan=plan,
        old=deployment(version(Path("v1"), 1)),
        new=deployment(version(Path("v2"), 2)),
        phase="shifting",
        stage_started_at=now(),
        watched_at=now(),
    )
    return made.model_copy(update=changes)


MakeBench = Callable[..., Bench]


@pytest.fixture
def bench_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[MakeBench]:
    """Make a trial of a fake version; it looks when the test says so."""
    made: list[Bench] = []
    monkeypatch.setattr(rollout_files, "LOOK_S", 60.0)

    def make(
        *,
        is_shadow: bool = False,
        old: FakeArm | None = None,
        answer_within_ms: float = 5000.0,
        **serving: Any,
    ) -> Bench:
        monkeypatch.setattr(trial, "Arm", lambda *_, **__: FakeArm(**serving))
        bench = Bench(
            Settings(project_root=tmp_path),
            is_shadow=is_shadow,
            old=old or FakeArm(),
            answer_within_ms=answer_within_ms,
        )
        made.append(bench)
        return bench

    yield make
    for bench in made:
        bench.trial.close()


@pytest.fixture
def bench(bench_of: MakeBench) -> Bench:
    return bench_of()


def asked(*scores: float, **more: Any) -> Asked:
    return Asked("id", None, [{"station": 1, "score": score, **more} for score in scores])


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(work)


async def all_of(bench: Bench, *requests: Asked) -> list[Scored | None]:
    return list(await asyncio.gather(*map(bench.trial.answer, requests)))


def fails(row: Row) -> float:
    if row["score"] == 13:
        raise ValueError("thirteen")
    return row["score"]


class TestAnswer:
    def test_it_is_the_versions_and_counted(self, bench: Bench):
        scored = run(bench.trial.answer(asked(0.25, 0.75, missing=["km"])))
        assert scored.scores.tolist() == [0.25, 0.75]
        new = bench.new
        assert (new.num_answers, new.num_errors, new.num_rows, new.num_rows_missing) == (1, 0, 2, 2)
        assert (new.sum_score, new.sum_score_squared) == (1.0, 0.625)
        assert 0 < new.latency_ms(1.0) < 5000
        assert bench.counts().old == ArmCounts()

    def test_those_that_wait_together_are_scored_together_and_each_gets_its_own(self, bench: Bench):
        answers = run(all_of(bench, asked(0.1), asked(0.2, 0.3), asked(0.4)))
        assert [a.scores.tolist() for a in answers] == [[0.1], [0.2, 0.3], [0.4]]
        assert bench.arm.sizes == [3]
        assert bench.new.num_answers == 3

    def test_where_the_version_fails_the_first_one_must_answer(self, bench: Bench):
        bench.arm.score = fails
        assert run(bench.trial.answer(asked(13))) is None
        assert (bench.new.num_answers, bench.new.num_errors) == (0, 1)

    def test_one_poisonous_request_does_not_fail_its_neighbours(self, bench: Bench):
        bench.arm.score = fails
        first, poison, last = run(all_of(bench, asked(0.1), asked(13), asked(0.2)))
        assert (first.scores[0], poison, last.scores[0]) == (0.1, None, 0.2)
        assert (bench.new.num_answers, bench.new.num_errors) == (2, 1)

    @pytest.mark.parametrize("score", [np.nan, np.inf])
    def test_a_score_that_is_no_number_is_no_answer(self, bench: Bench, score: float):
        first, second = run(all_of(bench, asked(0.1, score), asked(0.2)))
        assert (first, second.scores.tolist()) == (None, [0.2])
        new = bench.new
        assert (new.num_answers, new.num_errors, new.sum_score) == (1, 1, 0.2)


class TestHanging:
    @pytest.fixture
    def bench(self, bench_of: MakeBench) -> Bench:
        return bench_of(answer_within_ms=SHORT_MS)

    @pytest.fixture
    def released(self, bench: Bench) -> Iterator[threading.Event]:
        """Let the version hang until then."""
        event = threading.Event()

        def hangs(row: Row) -> float:
            event.wait(5)
            return row["score"]

        bench.arm.score = hangs
        yield event
        event.set()

    def test_who_waits_gets_no_answer_in_time_and_the_next_at_once(self, bench, released):
        async def work() -> None:
            started_s = time.perf_counter()
            assert await bench.trial.answer(asked(0.1)) is None
            assert time.perf_counter() - started_s < 1
            # It gives its answer without waiting for anything.
            with pytest.raises(StopIteration, check=lambda done: done.value is None):
                bench.trial.answer(asked(0.2)).send(None)
            released.set()

        run(work())
        assert bench.arm.sizes == [1]
        assert (bench.new.num_answers, bench.new.num_errors) == (0, 2)

    def test_once_it_comes_back_it_is_asked_again(self, bench, released):
        async def work() -> Scored | None:
            assert await bench.trial.answer(asked(0.1)) is None
            released.set()
            for _ in range(500):
                if (scored := await bench.trial.answer(asked(0.2))) is not None:
                    return scored
                await asyncio.sleep(0.002)
            return None

        assert run(work()).scores.tolist() == [0.2]

    def test_one_that_was_late_before_anything_ran_closes_nothing(self, bench_of: MakeBench):
        # Alone it waits for company for longer than it may; two are enough.
        bench = bench_of(
            answer_within_ms=SHORT_MS, batch_wait_s=1.5 * SHORT_MS / 1000, max_batch_size=2
        )

        async def work() -> bool:
            assert await bench.trial.answer(asked(0.1)) is None
            for _ in range(20):
                if None not in await all_of(bench, asked(0.2), asked(0.3)):
                    return True
                await asyncio.sleep(0.01)
            return False

        assert run(work())


class TestOldAnswers:
    def test_they_are_counted_and_in_a_canary_nobody_else_scores_them(self, bench: Bench):
        async def work() -> None:
            bench.trial.answered_by_old(asked(0.5), scored_of(0.5), 0.003)
            await asyncio.sleep(0.01)

        run(work())
        old = bench.counts().old
        assert (old.num_answers, old.sum_score) == (1, 0.5)
        assert old.latency_ms(1.0) == pytest.approx(3, rel=0.06)
        assert bench.arm.sizes == []


def scored_of(*scores: float) -> Scored:
    return Scored(scores=np.array(scores), missing=[[] for _ in scores])


class TestShadow:
    def score_beside(self, bench: Bench, *pairs: tuple[Asked, Scored]) -> ArmCounts:
        async def work() -> None:
            for request, scored in pairs:
                bench.trial.answered_by_old(request, scored, 0.001)
            await asyncio.gather(*bench.trial._shadows)

        run(work())
        return bench.new

    def test_both_scores_of_a_row_are_compared(self, bench_of: MakeBench):
        bench = bench_of(is_shadow=True)
        pair = (asked(0.25, 0.75, 0.5), scored_of(0.5, 0.5, 0.5))
        new = self.score_beside(bench, pair, pair)
        assert (new.num_answers, new.num_pairs, new.sum_difference) == (2, 6, 1.0)
        # Of a threshold of 0.5 only the first row of three is on the other side.
        assert new.num_flips == 2
        assert bench.counts().old.num_answers == 2
        assert bench.arm.told, "nobody is answered, and its batches are exported all the same"

    def test_where_a_score_is_no_decision_none_flips(self, bench_of: MakeBench):
        old = FakeArm()
        old.signature.threshold = None
        bench = bench_of(is_shadow=True, old=old)
        new = self.score_beside(bench, (asked(0.0), scored_of(1.0)))
        assert (new.num_pairs, new.num_flips) == (1, 0)

    def test_what_it_fails_on_is_an_error_and_no_pair(self, bench_of: MakeBench):
        bench = bench_of(is_shadow=True)
        bench.arm.score = fails
        new = self.score_beside(bench, (asked(13), scored_of(0.5)))
        assert (new.num_errors, new.num_pairs) == (1, 0)

    def test_more_than_it_can_do_it_leaves_out(self, bench_of: MakeBench, monkeypatch):
        monkeypatch.setattr(trial, "_MAX_SHADOWED", 2)
        bench = bench_of(is_shadow=True)
        new = self.score_beside(bench, *[(asked(0.1), scored_of(0.1))] * 5)
        assert (new.num_pairs, bench.counts().old.num_answers) == (2, 5)


class TestShare:
    def test_it_follows_the_file(self, bench: Bench):
        assert bench.taken() == set()
        bench.rolls(25)
        assert 60 < len(bench.taken()) < 140
        bench.rolls(100)
        assert len(bench.taken()) == 400
        bench.rolls(0)
        assert bench.taken() == set()

    def test_who_is_in_stays_in_as_it_grows(self, bench: Bench):
        before: set[int] = set()
        for percent in (5, 25, 50, 100):
            bench.rolls(percent)
            assert before < bench.taken()
            before = bench.taken()

    def test_the_first_row_decides_for_the_request(self, bench: Bench):
        bench.rolls(50)
        inside, outside = min(bench.taken()), min(set(range(400)) - bench.taken())
        assert bench.trial.takes([{"station": inside}, {"station": outside}])
        assert not bench.trial.takes([{"station": outside}, {"station": inside}])

    def test_where_nobody_watches_any_more_it_gets_nothing(self, bench: Bench):
        bench.rolls(100, watched_at=now() - timedelta(seconds=LEASE_S))
        assert (bench.percent, bench.taken()) == (0, set())

    def test_another_rollouts_share_is_not_its_own(self, bench: Bench):
        bench.rolls(100)
        assert bench.percent == 100
        bench.rolls(100, id="r2")
        assert bench.percent == 0

    def test_it_says_on_the_models_page_how_it_stands(self, bench: Bench):
        bench.rolls(12.5)
        assert bench.trial.describe() == {
            "id": "r1",
            "version": 2,
            "is_shadow": False,
            "percent": 12.5,
        }


class TestReport:
    def test_what_it_counted_is_reported_for_its_own_rollout_alone(self, bench: Bench):
        bench.rolls(5, id="r2")
        assert rollout_files.reports(bench.settings, rollout_of(id="r2")) == []
        bench.rolls(5)
        assert len(rollout_files.reports(bench.settings, rollout_of())) == 1

    def test_when_it_is_over_nothing_is_reported(self, bench: Bench):
        bench.rolls(0, phase="over")
        assert rollout_files.reports(bench.settings, rollout_of()) == []


class TestFollowing:
    def test_it_looks_by_itself_again_and_again(self, bench_of: MakeBench, monkeypatch):
        make, look_s = bench_of, 0.002
        monkeypatch.setattr(rollout_files, "LOOK_S", look_s)
        bench = make()
        for percent in (5.0, 100.0):
            rollout_files.write(bench.settings, rollout_of(share_percent=percent))
            wait_for(lambda percent=percent: bench.percent == percent, timeout_s=5)
        wait_for(lambda: rollout_files.reports(bench.settings, rollout_of()), timeout_s=5)

    def test_where_it_cannot_look_it_gives_nothing_and_looks_again(
        self, bench_of: MakeBench, monkeypatch
    ):
        monkeypatch.setattr(rollout_files, "LOOK_S", 0.002)
        bench = bench_of()
        rollout_files.write(bench.settings, rollout_of(share_percent=100))
        wait_for(lambda: bench.percent == 100, timeout_s=5)
        with monkeypatch.context() as broken:
            broken.setattr(rollout_files, "find", lambda *_: 1 / 0)
            wait_for(lambda: bench.percent == 0, timeout_s=5)
        wait_for(lambda: bench.percent == 100, timeout_s=5)

    def test_closed_it_stops_and_lets_go_of_the_version(self, bench_of: MakeBench):
        before = set(threading.enumerate())
        bench = bench_of()
        (thread,) = set(threading.enumerate()) - before
        bench.trial.close()
        thread.join(5)
        assert not thread.is_alive()
        assert bench.arm.is_closed
        assert run(bench.trial.answer(asked(0.1))) is None
