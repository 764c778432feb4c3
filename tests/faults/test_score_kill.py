"""Batch scorings that are killed, each in a real process, and given again as the same command."""

import itertools
import os
import random
import shutil
import signal
import stat
import time
import uuid
from pathlib import Path

import polars as pl
import pytest

from cases import some_slow
from forks import forks
from payments import TRANSACTIONS, settings_in
from penstock.data import tables
from penstock.errors import IntegrityError
from penstock.registry.registration import register
from penstock.registry.versions import ModelVersion
from penstock.serving import batch, score_parts
from penstock.serving.batch import ScoringReport, score_table
from penstock.serving.score_parts import ScoreParts
from small_model import prepare, train_small

OUT = "card_fraud.scores"
NUM_PAYMENTS, ROWS_PER_SLICE, NUM_SLICES = 2_000, 200, 11
# It tells of the start, of each slice, and of the begin and the end of the commit.
NUM_STEPS = 1 + NUM_SLICES + 2
# Counted on from there: in the middle of a part's file; with the file whole, before its rename.
IN_A_FILE, BEFORE_A_RENAME = 1_000, 2_000


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _other_transaction(*_: object) -> str:
    return f"scores-{uuid.uuid4().hex}"


def _all_slices(self: ScoreParts) -> list[int]:
    return list(range(len(self.slices)))


def _publish_in_place(self: ScoreParts, number: int, scores: pl.DataFrame) -> None:
    content = scores.write_ipc(None).getvalue()
    with self._file(number).open("wb") as out:
        out.write(content[: len(content) // 2])
        out.flush()
        os.fsync(out.fileno())
        out.write(content[len(content) // 2 :])


# What stands instead of each guard where it is off.
OFF = {
    "parts": (ScoreParts, "missing", _all_slices),
    "transaction": (batch, "_transaction", _other_transaction),
    "rename": (ScoreParts, "publish", _publish_in_place),
}


def score(storage: Path, model: ModelVersion, progress=lambda *_, **__: None) -> ScoringReport:
    return score_table(
        settings_in(storage),
        model=model,
        source=TRANSACTIONS,
        out=OUT,
        rows_per_slice=ROWS_PER_SLICE,
        progress=progress,
    )


def _score_until(storage: Path, model: ModelVersion, die_at: int, guard: str, begun=None) -> None:
    """Score, tell when the first step is reached, and die by SIGKILL at the given one."""
    if guard:
        setattr(*OFF[guard])
    original, numbers, num_steps = os.fsync, itertools.count(1), 0

    def fsync(handle: int) -> None:
        # Each part syncs its file and then its folder, and two threads are at it.
        found = os.fstat(handle)
        number = next(numbers) if stat.S_ISREG(found.st_mode) else 0
        if number and IN_A_FILE + number == die_at:
            os.ftruncate(handle, found.st_size // 2)
            _die()
        original(handle)
        if number and BEFORE_A_RENAME + number == die_at:
            _die()

    def progress(_step, _done, _total=None, *, unit="rows"):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 1 and begun is not None:
            begun.set()
        if num_steps == die_at:
            _die()

    score_parts.os.fsync = fsync
    score(storage, model, progress)


class Scoring:
    """A registered model, and what its scorings leave."""

    def __init__(self, storage: Path, model: ModelVersion) -> None:
        self.storage, self.model = storage, model
        self.settings = settings_in(storage)

    def clear(self) -> None:
        shutil.rmtree(self.settings.table_path(*OUT.split(".")), ignore_errors=True)
        shutil.rmtree(self.storage / "scoring", ignore_errors=True)

    def run_until(self, die_at: int, guard: str = "") -> int | None:
        """Score in a process that dies at the given step; give its exit code."""
        arguments = (self.storage, self.model, die_at, guard)
        process = forks.Process(target=_score_until, args=arguments)
        process.start()
        process.join()
        return process.exitcode

    def run_and_kill_after(self, after_s: float) -> tuple[int | None, float]:
        """Kill a scoring so long after its first step; give its exit code and how long it ran."""
        begun = forks.Event()
        arguments = (self.storage, self.model, 0, "", begun)
        process = forks.Process(target=_score_until, args=arguments)
        process.start()
        assert begun.wait(60)
        first_step_s = time.monotonic()
        process.join(after_s)
        process.kill()
        process.join()
        return process.exitcode, time.monotonic() - first_step_s

    def finish(self) -> ScoringReport:
        """Give the same command again, to its end."""
        return score(self.storage, self.model)

    def scores(self) -> pl.DataFrame:
        return tables.scan(self.settings, OUT).sort("TRANSACTION_ID", "score").collect()

    def is_committed(self) -> bool:
        return tables.exists(self.settings, OUT)

    def num_parts(self) -> int:
        return len(list((self.storage / "scoring").rglob("*.arrow")))

    def num_files(self) -> int:
        return sum(path.is_file() for path in (self.storage / "scoring").rglob("*"))


@pytest.fixture(scope="module")
def registered(tmp_path_factory: pytest.TempPathFactory) -> Scoring:
    storage = tmp_path_factory.mktemp("registered")
    settings = prepare(storage, num_payments=NUM_PAYMENTS)
    return Scoring(storage, register(settings, train_small(settings, "run-1")))


@pytest.fixture(scope="module")
def whole(registered: Scoring) -> pl.DataFrame:
    """What an undisturbed run leaves."""
    report = registered.finish()
    assert (report.num_slices, report.num_slices_found) == (NUM_SLICES, 0)
    return registered.scores()


@pytest.fixture
def scoring(registered: Scoring, whole: pl.DataFrame) -> Scoring:
    """Nothing scored yet."""
    registered.clear()
    return registered


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The slices that this process scores from now on."""
    numbers: list[int] = []
    publish = ScoreParts.publish

    def noted(self: ScoreParts, number: int, scores: pl.DataFrame) -> None:
        numbers.append(number)
        publish(self, number, scores)

    monkeypatch.setattr(ScoreParts, "publish", noted)
    return numbers


STEPS = [*range(1, NUM_STEPS + 1), *(IN_A_FILE + n for n in (1, 5)), BEFORE_A_RENAME + 5]
EVERY_RUN = (5, NUM_STEPS, IN_A_FILE + 5, BEFORE_A_RENAME + 5)


class TestKilledScoring:
    @pytest.mark.parametrize("die_at", some_slow(STEPS, in_every_run=EVERY_RUN))
    def test_after_a_kill_at_any_step_the_missing_parts_are_computed_and_each_row_is_there_once(
        self, scoring: Scoring, whole: pl.DataFrame, published: list[int], die_at: int
    ):
        assert scoring.run_until(die_at) == -signal.SIGKILL
        was_committed, num_parts = scoring.is_committed(), scoring.num_parts()
        assert was_committed == (die_at == NUM_STEPS)
        report = scoring.finish()
        assert scoring.scores().equals(whole)
        assert report.is_new == (not was_committed)
        assert len(published) == (0 if was_committed else NUM_SLICES - num_parts)
        assert scoring.num_files() == 0

    def test_five_kills_at_seeded_moments_leave_each_row_once(
        self, scoring: Scoring, whole: pl.DataFrame, published: list[int]
    ):
        whole_s = scoring.run_and_kill_after(60.0)[1]
        scoring.clear()
        chance, exits, num_parts = random.Random(7), [], 0
        for _ in range(5):
            exits.append(scoring.run_and_kill_after(chance.uniform(0.02, 0.3) * whole_s)[0])
            # What was done stays done, until the table has it.
            assert scoring.is_committed() or scoring.num_parts() >= num_parts
            num_parts = scoring.num_parts()
        # Else the kills came too late, and show nothing.
        assert exits.count(-signal.SIGKILL) >= 2
        was_committed = scoring.is_committed()
        scoring.finish()
        assert scoring.scores().equals(whole)
        assert len(published) == (0 if was_committed else NUM_SLICES - num_parts)
        assert scoring.num_files() == 0

    def test_a_living_run_has_so_many_steps(self, scoring: Scoring):
        # Were there more, the kills above would leave out the last ones.
        assert scoring.run_until(NUM_STEPS + 1) == 0


class TestWithAGuardOff:
    def test_without_the_parts_every_slice_is_computed_again(
        self, scoring: Scoring, published: list[int], monkeypatch: pytest.MonkeyPatch
    ):
        assert scoring.run_until(NUM_STEPS - 1) == -signal.SIGKILL
        monkeypatch.setattr(*OFF["parts"])
        scoring.finish()
        assert len(published) == NUM_SLICES

    def test_without_the_transaction_each_row_is_there_twice(
        self, scoring: Scoring, monkeypatch: pytest.MonkeyPatch
    ):
        assert scoring.run_until(NUM_STEPS, "transaction") == -signal.SIGKILL
        monkeypatch.setattr(*OFF["transaction"])
        scoring.finish()
        assert scoring.scores().height == 2 * NUM_PAYMENTS

    def test_without_the_rename_a_torn_part_stands_in_the_way(self, scoring: Scoring):
        assert scoring.run_until(BEFORE_A_RENAME + 5, "rename") == -signal.SIGKILL
        with pytest.raises(IntegrityError, match="damaged"):
            scoring.finish()
        assert not scoring.is_committed()
