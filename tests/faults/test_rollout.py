"""Rollouts under load, and kills of what controls them: a bad version costs nobody."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import rollout_driver
from cases import some_slow
from feedback import post
from http_requests import JSON, send
from penstock.errors import ClusterError, GateRefusedError, IntegrityError
from penstock.registry.versions import ModelVersion
from penstock.serving import ab_policy, rollout_files, server
from penstock.serving.code import freeze_code
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.http import ROOT_APP
from penstock.serving.rolling import roll_out
from penstock.serving.rollout import RolloutPlan
from penstock.settings import Settings
from projects import Project
from rolled import MODEL, Rolled
from served_versions import (
    Callers,
    by_amount,
    callers,
    fails_at_once,
    no_number,
    shifted,
    slow,
)
from told_truths import tellers
from waiting import wait_for

pytestmark = pytest.mark.ray

BACK_WITHIN_S = 30.0
MOMENTS = ("starting 0", "shifting 0", "shifting 1", "finishing 1", "unrecorded")


class TestRollout:
    def test_a_version_takes_over_share_by_share_and_each_caller_changes_once(self, rolled: Rolled):
        old, new = rolled.serving, rolled.register(change=shifted)
        with callers(rolled.port, MODEL) as asked:
            done = rolled.roll_out(new)
            ended_s = time.monotonic()
            time.sleep(0.5)
        assert asked.lost == []
        assert done.outcome == "served"
        assert asked.versions(since_s=ended_s) == {new.version}
        by_customer = defaultdict(list)
        for _, _, version, customer in sorted(asked.answers):
            if not by_customer[customer] or by_customer[customer][-1] != version:
                by_customer[customer].append(version)
        assert all(line == [old, new.version] for line in by_customer.values()), by_customer
        assert rolled.back() == old

    @pytest.mark.parametrize("change", some_slow((no_number, slow), in_every_run={no_number}))
    def test_a_bad_version_is_taken_back_and_answers_nobody(self, rolled: Rolled, change):
        old, new = rolled.serving, rolled.register(change=change)
        with callers(rolled.port, MODEL) as asked:
            with pytest.raises(GateRefusedError, match=r"error_rate<0\.01 is broken"):
                rolled.roll_out(new, hold_s=300)
            over = rollout_files.find(rolled.settings, MODEL)
        assert asked.lost == []
        assert asked.versions() == {old}
        assert over is not None
        assert over.outcome == "back"
        assert (over.watched_at - over.stage_started_at).total_seconds() < BACK_WITHIN_S

    @pytest.mark.slow
    def test_without_a_guard_a_version_without_numbers_would_take_over(self, rolled: Rolled):
        new = rolled.register(change=no_number)
        with callers(rolled.port, MODEL) as asked:
            done = rolled.roll_out(new, guards=(), min_answers=0)
            wait_for(lambda: asked.lost, timeout_s=10)
            # It has no score for anybody: soon nobody waits for it any more.
            wait_for(lambda: "model_broken" in asked.lost[-1], timeout_s=10)
        assert done.outcome == "served"
        assert "no_score" in asked.lost[0]
        rolled.back()

    @pytest.mark.slow
    def test_a_version_that_is_broken_or_tampered_with_never_takes_traffic(self, rolled: Rolled):
        old = rolled.serving
        with callers(rolled.port, MODEL) as asked:
            with pytest.raises(ClusterError, match="the model fails on a row without features"):
                rolled.roll_out(rolled.register(change=fails_at_once))
            tampered = rolled.register()
            graph = Path(tampered.path) / "model.onnx"
            content = graph.read_bytes()
            graph.chmod(0o644)
            graph.write_bytes(content[:99] + bytes([content[99] ^ 1]) + content[100:])
            with pytest.raises(IntegrityError, match="SHA-256"):
                rolled.roll_out(tampered)
        assert asked.lost == []
        assert asked.versions() == {old}

    @pytest.mark.slow
    def test_a_shadow_answers_nobody_and_what_it_scored_is_kept_apart(self, rolled: Rolled):
        from penstock.data import tables
        from penstock.serving.log_collection import collect, shadow_table

        old, new = rolled.serving, rolled.register(change=shifted)
        with callers(rolled.port, MODEL) as asked:
            done = rolled.roll_out(new, mode="shadow", shares_percent=())
        assert (done.outcome, rolled.serving) == ("shadowed", old)
        assert asked.lost == []
        assert asked.versions() == {old}
        collect(rolled.settings, "card_fraud")
        scored = tables.scan(rolled.settings, shadow_table("card_fraud"))
        rows = scored.filter(pl.col("model") == MODEL).collect()
        assert set(rows["model_version"]) == {new.version}

    @pytest.mark.slow
    def test_a_version_on_trial_can_be_asked_by_its_number(self, rolled: Rolled):
        new = rolled.register(change=shifted)
        path = f"/v1/models/{MODEL}/versions/{new.version}/predict"
        row = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_AMOUNT": 9.5}
        body = Callers.body({**row, "TX_DATETIME": "2024-04-20T10:00:00Z"})
        assert send(rolled.port, path, body, headers=JSON).status == 404
        process = rolled_in_a_process(rolled, self.waiting(rolled, new), "nowhere")
        try:
            wait_for(lambda: send(rolled.port, path, body, headers=JSON).status == 200)
            assert send(rolled.port, path, body, headers=JSON).json["version"] == new.version
            # The way back, asked for while another process carries the rollout out.
            assert rolled.back() == rolled.serving
            assert process.wait(60) == 1
        finally:
            process.kill()
        assert send(rolled.port, path, body, headers=JSON).status == 404

    @staticmethod
    def waiting(rolled: Rolled, new: ModelVersion) -> RolloutPlan:
        return rolled.plan(new, min_answers=10**6)


def rolled_in_a_process(rolled: Rolled, plan: RolloutPlan, dies: str) -> subprocess.Popen[bytes]:
    """Start the rollout in a process that dies at a moment of its own."""
    settings = rolled.settings.storage_path / "settings.json"
    settings.write_text(rolled.settings.model_dump_json())
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
    return subprocess.Popen(
        [sys.executable, rollout_driver.__file__, settings, plan.model_dump_json(), dies],
        env=environment,
    )


class TestKilledController:
    @pytest.mark.parametrize("moment", some_slow(MOMENTS, in_every_run={"shifting 1"}))
    def test_nothing_is_lost_and_the_same_command_goes_on(self, rolled: Rolled, moment: str):
        old, new = rolled.serving, rolled.register(change=shifted)
        plan = rolled.plan(new)
        with callers(rolled.port, MODEL) as asked:
            process = rolled_in_a_process(rolled, plan, moment)
            assert process.wait(120) == -signal.SIGKILL
            time.sleep(rollout_files.LEASE_S + 2)
            unwatched_s = time.monotonic()
            time.sleep(1)
            # Nobody looks at the guards, so the new version gets nothing, where both stand.
            found = asked.versions(since_s=unwatched_s)
            assert found == ({new.version} if moment == "unrecorded" else {old})
            done = roll_out(rolled.settings, new, plan, report=lambda _: None)
            ended_s = time.monotonic()
            time.sleep(0.5)
        assert asked.lost == []
        assert done.outcome == "served"
        assert asked.versions(since_s=ended_s) == {new.version}
        assert rolled.back() == old

    @pytest.mark.slow
    def test_without_the_lease_the_new_version_would_go_on_unwatched(self, rolled: Rolled):
        old, new = rolled.serving, rolled.register(change=shifted)
        process = rolled_in_a_process(rolled, rolled.plan(new, min_answers=0), "shifting 1")
        assert process.wait(120) == -signal.SIGKILL
        left = rollout_files.find(rolled.settings, MODEL)
        assert left is not None
        ages = left.model_copy(update={"watched_at": left.watched_at + timedelta(hours=1)})
        rollout_files.write(rolled.settings, ages)
        time.sleep(rollout_files.LEASE_S + 2)
        with callers(rolled.port, MODEL) as asked:
            time.sleep(0.5)
        assert asked.versions() == {new.version}
        assert rolled.back() == old
        with callers(rolled.port, MODEL) as asked:
            time.sleep(0.5)
        assert asked.versions() == {old}


class TestAb:
    """Two versions, truths by HTTP, and the better one stays."""

    def by_amount(self, rolled: Rolled, sense: float) -> ModelVersion:
        names = json.loads((Path(rolled.run.bundle_path) / "signature.json").read_text())
        feature = names["feature_names"].index("TX_AMOUNT")
        return rolled.register(change=partial(by_amount, feature=feature, sense=sense))

    @staticmethod
    def choices(**changes: Any) -> dict[str, Any]:
        return {
            "mode": "ab",
            "outcome": "brier",
            "shares_percent": (50,),
            "hold_s": 3_600,
            "answer_within_ms": 5_000,
            **changes,
        }

    @pytest.fixture(autouse=True)
    def looks_often(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(ab_policy, "_FIRST_WAIT_S", 1.0)
        monkeypatch.setattr(ab_policy, "_LOOKS_IN_THE_TIME", 1)

    @pytest.fixture
    def feedback_route(self, rolled: Rolled, project: Project) -> Iterator[None]:
        """The server's `/` knows the models of one storage, of the test run's: for now of this."""
        run_root_of(rolled.settings)
        yield
        run_root_of(project.settings)

    def test_a_worse_version_goes_back_by_its_truths_alone(self, rolled: Rolled):
        old, worse = rolled.serving, self.by_amount(rolled, -1)
        intake = FeedbackIntake(rolled.settings)
        with (
            tellers(rolled.port, MODEL, tell=lambda body: post(intake, body)[0].status) as told,
            pytest.raises(GateRefusedError, match=rf"version {old} is better: brier"),
        ):
            rolled.roll_out(worse, **self.choices())
        assert told.lost == []
        over = rollout_files.find(rolled.settings, MODEL)
        evidence = over.evidence
        assert (over.outcome, evidence.is_new_better) == ("back", False)
        assert evidence.comparison.low > 0
        # What the table says of arms is what callers saw.
        assert is_half_and_half(evidence.new.num_units, evidence.old.num_units)
        assert evidence.new.num_outcomes <= 2 * evidence.new.num_units
        assert evidence.new.num_units + evidence.old.num_units <= len(told.versions)

    @pytest.mark.slow
    def test_a_better_version_takes_over(self, rolled: Rolled, feedback_route: None):
        old, better = rolled.serving, self.by_amount(rolled, 1)
        with tellers(rolled.port, MODEL) as told:
            done = rolled.roll_out(better, **self.choices(shares_percent=(30,)))
        assert told.lost == []
        assert (done.outcome, rolled.serving) == ("served", better.version)
        assert f"version {better.version} is better: brier" in done.reason
        assert rolled.back() == old

    @pytest.mark.slow
    def test_the_same_twice_goes_back_undecided(self, rolled: Rolled, feedback_route: None):
        old, same = rolled.serving, rolled.register()
        with (
            tellers(rolled.port, MODEL),
            pytest.raises(GateRefusedError, match="no difference found: in 15s, "),
        ):
            rolled.roll_out(same, **self.choices(hold_s=15, alpha=0.0001))
        assert rolled.serving == old

    @pytest.mark.slow
    def test_a_guard_that_breaks_ends_it_before_any_truth(self, rolled: Rolled):
        old, broken = rolled.serving, rolled.register(change=no_number)
        with (
            callers(rolled.port, MODEL) as asked,
            pytest.raises(GateRefusedError, match=r"error_rate<0\.01 is broken"),
        ):
            rolled.roll_out(broken, **self.choices())
        assert asked.lost == []
        assert asked.versions() == {old}

    @pytest.mark.slow
    def test_a_killed_one_goes_on_and_counts_what_was_told_before(
        self, rolled: Rolled, feedback_route: None
    ):
        old, better = rolled.serving, self.by_amount(rolled, 1)
        plan = rolled.plan(better, **self.choices(alpha=1e-6))
        process = rolled_in_a_process(rolled, plan, "nowhere")
        try:
            with tellers(rolled.port, MODEL) as told:
                wait_for(lambda: is_looked_at(rolled), timeout_s=300)
                process.kill()
                process.wait()
                killed = rollout_files.find(rolled.settings, MODEL)
                time.sleep(rollout_files.LEASE_S + 2)
                done = roll_out(rolled.settings, better, plan, report=lambda _: None)
        finally:
            process.kill()
        assert told.lost == []
        assert (killed.phase, done.outcome) == ("shifting", "served")
        assert [each.since for each in done.stretches] == [killed.stage_started_at]
        assert done.evidence.looked_s > rollout_files.LEASE_S
        # Nobody was split while nobody watched, and those customers count on neither side.
        known = done.evidence.num_predictions_new + done.evidence.num_predictions_old
        assert known < 2 * len(told.versions)
        assert is_half_and_half(done.evidence.new.num_units, done.evidence.old.num_units)
        assert rolled.back() == old


def is_half_and_half(num_new: int, num_old: int) -> bool:
    """Whether customers can have been split by a fair coin: within five deviations of it."""
    return abs(num_new - num_old) <= 5 * (num_new + num_old) ** 0.5


def run_root_of(settings: Settings) -> None:
    """Let the application at `/` work on this storage."""
    from ray import serve

    builders = server.load_builders(settings)
    environment = server.runtime_env(settings, str(freeze_code(settings)))
    root = builders.build_root(builders.RootArguments(runtime_env=environment))
    serve.run(root, name=ROOT_APP, route_prefix="/")


def is_looked_at(rolled: Rolled) -> bool:
    """Whether an A/B under way has counted some truths."""
    found = rollout_files.find(rolled.settings, MODEL)
    return found is not None and not found.is_over and found.evidence is not None
