"""Models that share replicas: loaded when they are asked for, rolled out like any other."""

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pytest

from explained import explanations_of
from feedback import post
from http_requests import JSON, send
from penstock.errors import ClusterError, UserError
from penstock.registry.versions import ModelVersion
from penstock.serving import ab_policy, server, shared_targets
from penstock.serving.deploy import deploy, find_deployment, undeploy
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.rolling import plan_rollout, roll_out
from penstock.serving.way_back import roll_back
from penstock.settings import Settings
from served_versions import Callers, by_amount, callers, fails_at_once, register, shifted
from small_model import SmallRun
from told_truths import tellers
from waiting import wait_for

pytestmark = pytest.mark.ray

MODELS = ("gauges", "sluices")
ROW = {
    "CUSTOMER_ID": 1,
    "TERMINAL_ID": 2,
    "TX_AMOUNT": 9.5,
    "TX_DATETIME": "2024-04-20T10:00:00Z",
}


@dataclass(frozen=True)
class Shared:
    """A storage with a trained run, on the test run's one Ray."""

    settings: Settings
    run: SmallRun

    @property
    def port(self) -> int:
        return int(server.url(self.settings).rsplit(":", 1)[1])

    def within(self, **serving: int) -> "Shared":
        changed = self.settings.serving.model_copy(update=serving)
        return Shared(self.settings.model_copy(update={"serving": changed}), self.run)

    def register(self, model: str, **how: Any) -> ModelVersion:
        return register(self.settings, self.run, model, **{"shared": True, **how})

    def deploy(self, version: ModelVersion) -> None:
        deploy(self.settings, version, report=lambda _: None)

    def ask(self, model: str) -> Any:
        return send(self.port, f"/v1/models/{model}/predict", Callers.body(ROW), headers=JSON)

    def evictions(self, model: str) -> float:
        page = send(self.port, "/metrics", method="GET").body.decode()
        lines = [
            line
            for line in page.splitlines()
            if line.startswith("ray_penstock_shared_evictions") and f'model="{model}"' in line
        ]
        return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


@pytest.fixture(scope="module")
def shared(small_run: tuple[Settings, SmallRun]) -> Iterator[Shared]:
    mine, run = small_run
    made = Shared(mine, run)
    try:
        for model in MODELS:
            made.deploy(made.register(model))
        yield made
    finally:
        for model in MODELS:
            undeploy(mine, model)


def replica_pids() -> list[int]:
    """The processes of the running shared replicas."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"]["penstock-shared"]
    (deployment,) = application["deployments"].values()
    return sorted(r["pid"] for r in deployment["replicas"] if r["state"] == "RUNNING")


def test_one_process_answers_for_all_of_them(shared: Shared):
    for model in MODELS:
        reply = shared.ask(model)
        assert (reply.status, reply.json["model"], reply.json["version"]) == (200, model, 1)
        tensors = send(shared.port, f"/v2/models/{model}/ready", method="GET")
        assert tensors.status == 200
    assert len(replica_pids()) == 1
    assert set(MODELS) <= send(shared.port, "/v1/models", method="GET").json["models"].keys()
    refused = send(shared.port, "/v1/models/nobody/predict", Callers.body(ROW), headers=JSON)
    assert (refused.status, refused.json["code"]) == (404, "unknown_model")


def test_a_version_takes_over_share_by_share_and_back_and_none_is_lost(shared: Shared):
    model, other = MODELS
    new = shared.register(model, change=shifted)
    with callers(shared.port, model) as asked, callers(shared.port, other, threads=1) as beside:
        plan = plan_rollout(
            shared.settings, new, shares_percent=(30, 100), hold_s=1.0, min_answers=5
        )
        done = roll_out(shared.settings, new, plan, report=lambda _: None)
        assert done.outcome == "served"
        back = roll_back(shared.settings, model, reason="a test", report=lambda _: None)
    assert back.version == 1
    assert (asked.lost, beside.lost) == ([], [])
    assert asked.versions() == {1, new.version}
    assert beside.versions() == {1}


def test_an_async_request_is_worked_on_as_by_any_replica(shared: Shared):
    path = f"/v1/models/{MODELS[0]}/predict-async"
    taken = send(shared.port, path, Callers.body(ROW), headers=JSON)
    assert taken.status == 202
    url = taken.json["status_url"]

    def is_done() -> bool:
        return send(shared.port, url, method="GET").json["status"] == "done"

    wait_for(is_done)
    (prediction,) = send(shared.port, url, method="GET").json["result"]["predictions"]
    (same,) = shared.ask(MODELS[0]).json["predictions"]
    assert prediction["score"] == same["score"]


def test_an_explanation_adds_up_to_the_score(shared: Shared):
    model = MODELS[0]
    path = f"/v1/models/{model}/explain"
    (told,) = explanations_of(shared.port, path, Callers.body(ROW))["explanations"]
    (predicted,) = shared.ask(model).json["predictions"]
    parts = sum(part["contribution"] for part in told["contributions"])
    assert told["base_score"] + parts == pytest.approx(predicted["score"], abs=1e-6)


@pytest.mark.slow
def test_in_an_ab_the_version_with_better_truths_takes_over(
    shared: Shared, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(ab_policy, "_FIRST_WAIT_S", 1.0)
    monkeypatch.setattr(ab_policy, "_LOOKS_IN_THE_TIME", 1)
    model = MODELS[0]
    names = json.loads((Path(shared.run.bundle_path) / "signature.json").read_text())
    amount = names["feature_names"].index("TX_AMOUNT")
    better = shared.register(model, change=partial(by_amount, feature=amount))
    intake = FeedbackIntake(shared.settings)
    with tellers(shared.port, model, tell=lambda body: post(intake, body)[0].status) as told:
        plan = plan_rollout(
            shared.settings,
            better,
            mode="ab",
            outcome="brier",
            shares_percent=(50,),
            hold_s=3_600,
            min_answers=5,
            answer_within_ms=5_000,
        )
        done = roll_out(shared.settings, better, plan, report=lambda _: None)
        back = roll_back(shared.settings, model, reason="a test", report=lambda _: None)
    assert (told.lost, done.outcome, back.version) == ([], "served", 1)
    assert f"version {better.version} is better: brier" in done.reason


@pytest.mark.slow
def test_a_shadow_answers_nobody(shared: Shared):
    model = MODELS[0]
    new = shared.register(model, change=shifted)
    with callers(shared.port, model) as asked:
        plan = plan_rollout(
            shared.settings, new, mode="shadow", shares_percent=(), hold_s=1.0, min_answers=5
        )
        done = roll_out(shared.settings, new, plan, report=lambda _: None)
    assert done.outcome == "shadowed"
    assert asked.lost == []
    assert asked.versions() == {1}


def test_a_version_that_cannot_be_loaded_leaves_the_one_before(shared: Shared):
    model = MODELS[0]
    with callers(shared.port, model) as asked:
        with pytest.raises(ClusterError, match="the model fails on a row without features"):
            shared.deploy(shared.register(model, change=fails_at_once))
        wait_for(lambda: asked.answers)
    assert asked.lost == []
    assert asked.versions() == {1}
    found = find_deployment(shared.settings, model)
    assert found is not None
    assert found.version == 1


def test_what_does_not_fit_comes_and_goes_and_every_request_is_answered(shared: Shared):
    small = shared.within(shared_model_bytes=1 << 20)
    small.deploy(small.register(MODELS[0]))
    before = shared.evictions(MODELS[0])
    for _ in range(3):
        for model in MODELS:
            assert small.ask(model).status == 200
    with callers(shared.port, MODELS[0]) as first, callers(shared.port, MODELS[1]) as second:
        wait_for(lambda: len(first.answers) > 20 and len(second.answers) > 20)
    assert (first.lost, second.lost) == ([], [])
    wait_for(lambda: shared.evictions(MODELS[0]) >= before + 2)
    shared.deploy(shared.register(MODELS[0]))


@pytest.mark.slow
def test_with_two_replicas_a_kill_loses_no_request(shared: Shared):
    two = shared.within(shared_replicas=2)
    two.deploy(two.register(MODELS[0]))
    wait_for(lambda: len(replica_pids()) == 2)
    with callers(shared.port, MODELS[0]) as asked:
        wait_for(lambda: len(asked.answers) > 50)
        os.kill(replica_pids()[0], signal.SIGKILL)
        wait_for(lambda: len(replica_pids()) == 2)
    assert asked.lost == []
    shared.deploy(shared.register(MODELS[0]))


def test_a_version_for_replicas_of_its_own_is_refused_before_anything_changes(shared: Shared):
    alone = shared.register(MODELS[0], shared=False)
    with pytest.raises(UserError, match="is served by the shared replicas, and this version"):
        shared.deploy(alone)
    with pytest.raises(UserError, match="is for shared replicas"):
        plan_rollout(shared.settings, alone, shares_percent=(100,), hold_s=1.0)
    assert shared.ask(MODELS[0]).status == 200


def test_the_last_one_ends_the_application(shared: Shared):
    (pid,) = replica_pids()
    for model in MODELS:
        assert undeploy(shared.settings, model)
    assert shared_targets.shared_models(shared.settings) == []
    wait_for(lambda: not psutil.pid_exists(pid))
    assert shared.ask(MODELS[0]).status == 404
