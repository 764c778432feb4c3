"""Deploys, rollouts and kills under load: no request is lost, and a bad version costs nobody."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

import rollout_driver
from cases import some_slow
from feedback import post
from http_requests import JSON, send
from penstock.cluster.ingress import ingress_ports
from penstock.errors import ClusterError, GateRefusedError, IntegrityError, UserError
from penstock.registry.versions import ModelVersion
from penstock.serving import ab_policy, rollout_files, server
from penstock.serving.code import freeze_code
from penstock.serving.deploy import deploy, find_deployment, undeploy
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.http import ROOT_APP
from penstock.serving.rolling import plan_rollout, roll_out
from penstock.serving.rollout import RolloutPlan
from penstock.serving.way_back import roll_back
from penstock.settings import Settings
from projects import Project
from served_versions import (
    Callers,
    by_amount,
    callers,
    fails_at_once,
    no_number,
    register,
    shifted,
    slow,
)
from small_model import SmallRun
from told_truths import tellers
from waiting import wait_for

pytestmark = pytest.mark.ray

MODEL = "rolled"
BACK_WITHIN_S = 30.0
NUM_MOVES = 10
MOMENTS = ("starting 0", "shifting 0", "shifting 1", "finishing 1", "unrecorded")


@dataclass(frozen=True)
class Rolled:
    """A storage with a trained run, on the test run's one Ray."""

    settings: Settings
    run: SmallRun

    @property
    def port(self) -> int:
        return int(server.url(self.settings).rsplit(":", 1)[1])

    @property
    def replica_ports(self) -> set[int]:
        ports = ingress_ports(
            self.settings.model_copy(
                update={"serving": self.settings.serving.model_copy(update={"port": self.port})}
            )
        )
        return set(range(ports["replicas_from"], ports["replicas_to"]))

    @property
    def serving(self) -> int:
        """The version that is written down as deployed."""
        found = find_deployment(self.settings, MODEL)
        assert found is not None
        return found.version

    def register(self, **how: Any) -> ModelVersion:
        return register(self.settings, self.run, MODEL, **how)

    def deploy(self, version: ModelVersion) -> None:
        deploy(self.settings, version, report=lambda _: None)

    def back(self) -> int:
        return roll_back(self.settings, MODEL, reason="a test", report=lambda _: None).version

    def plan(self, version: ModelVersion, **choices: Any) -> RolloutPlan:
        choices = {"shares_percent": (30, 100), "hold_s": 1.0, "min_answers": 5, **choices}
        return plan_rollout(self.settings, version, **choices)

    def roll_out(self, version: ModelVersion, **choices: Any) -> rollout_files.Rollout:
        plan = self.plan(version, **choices)
        return roll_out(self.settings, version, plan, report=lambda _: None)


@pytest.fixture(scope="module")
def rolled(small_run: tuple[Settings, SmallRun]) -> Iterator[Rolled]:
    mine, run = small_run
    made = Rolled(mine, run)
    try:
        made.deploy(made.register())
        yield made
    finally:
        undeploy(mine, MODEL)


def replica_pids() -> list[int]:
    """The processes of the model's running replicas."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    return sorted(r["pid"] for r in deployment["replicas"] if r["state"] == "RUNNING")


def num_wanted() -> int:
    """How many replicas Serve aims at."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    return int(deployment["target_num_replicas"])


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
        rows = tables.scan(rolled.settings, shadow_table("card_fraud")).collect()
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


class TestDeploysUnderLoad:
    @pytest.mark.slow
    def test_one_replica_is_replaced_again_and_again_and_none_is_lost(self, rolled: Rolled):
        first, second = rolled.serving, rolled.register()
        with callers(rolled.port, MODEL) as asked:
            for move in range(NUM_MOVES):
                if move % 2:
                    assert rolled.back() == first
                else:
                    rolled.deploy(second)
        assert asked.lost == []
        assert asked.versions() == {first, second.version}
        assert len(asked.answers) > 5_000


def listening_ports(pid: int) -> list[int]:
    """The ports that a process listens on."""
    found = psutil.Process(pid).net_connections(kind="tcp")
    return sorted(each.laddr.port for each in found if each.status == psutil.CONN_LISTEN)


def ingress_pid(port: int) -> int | None:
    """The process that answers at the port; None: there is none."""
    found = (
        each.pid
        for each in psutil.net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid
    )
    return next(found, None)


class TestKilledIngress:
    def test_another_one_takes_its_place(self, rolled: Rolled):
        with callers(rolled.port, MODEL) as asked:
            wait_for(lambda: asked.answers)
            killed = ingress_pid(rolled.port)
            assert killed
            os.kill(killed, signal.SIGKILL)
            # It takes some five seconds; a busy machine may take its time.
            wait_for(lambda: ingress_pid(rolled.port) not in (None, killed))
            back_s = time.monotonic()
            wait_for(lambda: asked.answers[-1][0] > back_s + 0.5)
        # It takes the requests along that it had in hand, and nobody is let in before the next.
        assert asked.lost
        # Until the next one knows of the model it does not say that there is none.
        assert not [lost for lost in asked.lost if lost.startswith("404")]


class TestGpus:
    def test_a_version_for_gpus_is_refused_at_once_where_ray_has_none(self, rolled: Rolled):
        old, asks = rolled.serving, rolled.register(num_gpus_per_replica=1)
        with callers(rolled.port, MODEL) as asked:
            with pytest.raises(UserError, match="this Ray has no GPU"):
                rolled.deploy(asks)
            wait_for(lambda: asked.answers)
        assert asked.lost == []
        assert asked.versions() == {rolled.serving} == {old}


class TestScaling:
    @pytest.mark.slow
    def test_a_burst_gets_a_second_replica_in_seconds_and_none_is_lost_both_ways(
        self, rolled: Rolled
    ):
        # Each request waits a little for others, so that those of a burst are in flight together.
        scales = rolled.register(
            max_replicas=2,
            target_ongoing_requests=4,
            batch_wait_s=0.1,
            downscale_delay_s=3.0,
            num_cpus_per_replica=0.1,
        )
        old = rolled.serving
        rolled.deploy(scales)
        with callers(rolled.port, MODEL, threads=1, pause_s=0.2) as always:
            wait_for(lambda: len(replica_pids()) == 1)
            took = {}
            with callers(rolled.port, MODEL, threads=16, pause_s=0) as burst:
                started_s = time.monotonic()
                # Serve's default delay alone is 30 s.
                wait_for(lambda: num_wanted() == 2, timeout_s=25)
                took["until a second one was wanted"] = time.monotonic() - started_s
                wait_for(lambda: len(replica_pids()) == 2)
                took["until it ran"] = time.monotonic() - started_s
                time.sleep(2)
            started_s = time.monotonic()
            wait_for(lambda: num_wanted() == 1)
            took["after the burst, until one was enough"] = time.monotonic() - started_s
            wait_for(lambda: len(replica_pids()) == 1)
            time.sleep(5)
        told = {what: round(s, 1) for what, s in took.items()}
        print(told, len(burst.answers))  # noqa: T201  # docs/serving.md has these numbers
        assert (burst.lost, always.lost) == ([], [])
        assert always.versions() | burst.versions() == {scales.version}
        assert rolled.back() == old


class TestKilledReplicas:
    @pytest.mark.slow
    def test_past_the_ingress_which_tries_again_its_requests_would_be_lost(self, rolled: Rolled):
        (pid,) = replica_pids()
        ports = rolled.replica_ports & set(listening_ports(pid))
        with callers(min(ports), MODEL) as asked:
            wait_for(lambda: asked.answers)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: asked.lost, timeout_s=10)
        assert asked.lost
        wait_for(lambda: len(replica_pids()) == 1)

    @pytest.mark.parametrize("num_kills", some_slow((1, 10), in_every_run={1}))
    def test_the_other_one_answers(self, rolled: Rolled, num_kills: int):
        two = rolled.register(min_replicas=2, max_replicas=2, num_cpus_per_replica=0.1)
        old = rolled.serving
        rolled.deploy(two)
        draw = random.Random(num_kills)
        with callers(rolled.port, MODEL) as asked:
            for _ in range(num_kills):
                wait_for(lambda: len(replica_pids()) == 2)
                killed = draw.choice(replica_pids())
                os.kill(killed, signal.SIGKILL)
                wait_for(lambda dead=killed: dead not in replica_pids())
            wait_for(lambda: len(replica_pids()) == 2)
        assert asked.lost == []
        assert asked.versions() == {two.version}
        assert rolled.back() == old
