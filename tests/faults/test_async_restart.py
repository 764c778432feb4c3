"""The whole Ray is killed with async requests accepted: after `up` and `deploy` they are done."""

import json
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from http_requests import JSON, Reply, send
from payments import USE_CASE
from penstock.cluster import local, processes
from penstock.serving import server
from projects import Project
from served_versions import register
from small_model import prepare, train_small
from waiting import wait_for

pytestmark = pytest.mark.slow

BASE = f"/v1/models/{USE_CASE}"
NUM_ROWS = (50, 3_000, 20_000)


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Project]:
    """A project with a Ray of its own, for this test kills it."""
    made = Project(storage=tmp_path / "storage")
    prepare(made.storage)
    register(made.settings, train_small(made.settings, "run-1"), USE_CASE)
    try:
        made.must("up")
        made.must("features", "materialize", USE_CASE)
        made.must("deploy", USE_CASE, "--version", "1")
        yield made
    finally:
        local.down(made.settings)


def ask(project: Project, path: str, rows: list | None = None, *, method: str = "POST") -> Reply:
    port = int(server.url(project.settings).rsplit(":", 1)[1])
    body = json.dumps({"rows": rows}) if rows is not None else b""
    return send(port, BASE + path, body, method=method, headers=JSON)


def rows_of(number: int) -> list[dict]:
    moment = "2024-04-20T10:00:00Z"
    return [
        {"CUSTOMER_ID": n % 50, "TERMINAL_ID": n % 60, "TX_DATETIME": moment, "TX_AMOUNT": n / 7}
        for n in range(number)
    ]


def test_a_killed_ray_loses_no_accepted_request(own: Project):
    ids = []
    for number in NUM_ROWS:
        reply = ask(own, "/predict-async", rows_of(number))
        assert reply.status == 202, reply.body
        ids.append(reply.json["task_id"])
    time.sleep(1)
    for process in processes.find(local.cluster_id(own.settings)):
        process.kill()
    own.must("down")
    own.must("up")
    own.must("deploy", USE_CASE, "--version", "1")
    for task_id, number in zip(ids, NUM_ROWS, strict=True):

        def found(task_id: str = task_id) -> dict:
            return ask(own, f"/tasks/{task_id}", method="GET").json

        wait_for(lambda look=found: look().get("status") in ("done", "failed"), timeout_s=240)
        task = found()
        assert task["status"] == "done", task
        predictions = task["result"]["predictions"]
        assert len({prediction["prediction_id"] for prediction in predictions}) == number
        again = ask(own, "/predict", rows_of(number)[:100]).json["predictions"]
        expected = [prediction["score"] for prediction in again]
        assert [p["score"] for p in predictions[:100]] == pytest.approx(expected, abs=1e-9)
