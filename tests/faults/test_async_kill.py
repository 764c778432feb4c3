"""Async requests on a real deployment: as predict answers, and done whatever is killed."""

import json
import os
import random
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from cases import some_slow
from http_requests import JSON, Reply, send
from payments import USE_CASE
from penstock.cluster.local import LocalCluster
from penstock.data import tables
from penstock.serving import server
from penstock.serving.deploy import deploy, undeploy
from penstock.serving.log_collection import collect, predictions_table
from penstock.settings import Settings
from projects import Project
from small_model import prepare_on, seal_as, train_small
from waiting import wait_for

pytestmark = pytest.mark.ray

MODEL = "asked_async"
BASE = f"/v1/models/{MODEL}"
MAX_ROWS = 300
KILLS_S = [round(random.Random(seed).uniform(0.0, 1.5), 2) for seed in (1, 2, 3, 4, 5)]


def rows_of(number: int, *, start: int = 0) -> list[dict]:
    return [
        {
            "CUSTOMER_ID": n % 50,
            "TERMINAL_ID": n % 60,
            "TX_DATETIME": "2024-04-20T10:00:00.25Z",
            "TX_AMOUNT": 1 + n % 900 / 7,
        }
        for n in range(start, start + number)
    ]


@dataclass(frozen=True)
class Asked:
    settings: Settings

    @property
    def port(self) -> int:
        return int(server.url(self.settings).rsplit(":", 1)[1])

    def send(
        self, path: str, rows: object = None, *, method: str = "POST", **headers: str
    ) -> Reply:
        body = json.dumps({"rows": rows}) if rows is not None else b""
        return send(self.port, BASE + path, body, method=method, headers=JSON | headers)

    def begin(self, rows: list[dict], **headers: str) -> str:
        reply = self.send("/predict-async", rows, **headers)
        assert reply.status == 202, reply.body
        assert reply.headers["location"] == reply.json["status_url"]
        return reply.json["task_id"]

    def task(self, task_id: str) -> dict:
        reply = self.send(f"/tasks/{task_id}", method="GET")
        # Between two replicas nobody is there.
        return reply.json if reply.status == 200 else {"status": f"{reply.status}"}

    def done(self, task_id: str) -> dict:
        wait_for(lambda: self.task(task_id)["status"] in ("done", "failed"), timeout_s=90)
        found = self.task(task_id)
        assert found["status"] == "done", found
        assert found["num_rows_done"] == found["num_rows"]
        return found["result"]

    def scores(self, rows: list[dict]) -> list[float]:
        """By the ordinary route, as many at a time as it takes."""
        parts = [rows[n : n + MAX_ROWS] for n in range(0, len(rows), MAX_ROWS)]
        return [
            p["score"] for part in parts for p in self.send("/predict", part).json["predictions"]
        ]

    def logged(self, task_id: str) -> list[str]:
        """The prediction ids that the log has of a task."""
        collect(self.settings, USE_CASE)
        table = tables.scan(self.settings, predictions_table(USE_CASE)).collect()
        return [
            prediction
            for prediction, request in table.select("prediction_id", "request_id").iter_rows()
            if request is not None and request.startswith(task_id)
        ]


@pytest.fixture(scope="module")
def asked(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Asked]:
    mine = prepare_on(project, tmp_path_factory.mktemp("async"))
    version = seal_as(mine, train_small(mine, "run-1"), MODEL, max_rows_per_request=MAX_ROWS)
    try:
        deploy(mine, version, report=lambda _: None)
        yield Asked(mine)
    finally:
        undeploy(mine, MODEL)


def kill_replica() -> None:
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    for replica in deployment["replicas"]:
        if replica["state"] == "RUNNING":
            os.kill(replica["pid"], signal.SIGKILL)


class TestAsked:
    def test_many_rows_get_the_scores_that_predict_gives(self, asked: Asked):
        rows = rows_of(5_000)
        result = asked.done(asked.begin(rows))
        assert (result["model"], result["version"]) == (MODEL, 1)
        assert result["predictions"][0].keys() == {"prediction_id", "score", "label", "missing"}
        found = [prediction["score"] for prediction in result["predictions"]]
        assert found == pytest.approx(asked.scores(rows), abs=1e-9)
        ids = {prediction["prediction_id"] for prediction in result["predictions"]}
        assert len(ids) == len(rows)

    def test_the_same_request_twice_is_one_task_and_another_id_is_another(self, asked: Asked):
        rows = rows_of(3)
        first = asked.begin(rows, **{"X-Request-Id": "once"})
        assert asked.begin(rows, **{"X-Request-Id": "once"}) == first
        assert asked.begin(rows, **{"X-Request-Id": "other"}) != first
        result = asked.done(first)
        assert asked.begin(rows, **{"X-Request-Id": "once"}) == first
        assert sorted(asked.logged(first)) == sorted(
            p["prediction_id"] for p in result["predictions"]
        )
        removed = asked.send(f"/tasks/{first}", method="DELETE")
        assert (removed.status, removed.json["was"]) == (200, "done")
        assert asked.send(f"/tasks/{first}", method="GET").json["code"] == "unknown_task"

    def test_bad_rows_are_refused_at_once_with_their_place(self, asked: Asked):
        rows = rows_of(1_000)
        rows[901]["TX_AMOUNT"] = "7"
        reply = asked.send("/predict-async", rows)
        assert (reply.status, reply.json["path"]) == (422, "$.rows[901].TX_AMOUNT")
        reply = asked.send("/predict-async", rows_of(1) * 50_001)
        assert (reply.status, reply.json["code"]) == (422, "too_many_rows")
        assert asked.send("/versions/7/predict-async", rows_of(1)).json["code"] == "unknown_version"
        wrong = asked.send("/predict-async", method="GET")
        assert (wrong.status, wrong.headers["allow"]) == (405, "POST")

    @pytest.mark.parametrize("after_s", some_slow(KILLS_S, in_every_run=KILLS_S[:1]))
    def test_a_killed_replica_loses_no_task_and_repeats_no_prediction(self, asked: Asked, after_s):
        started = time.time_ns()
        sent = [rows_of(n, start=n) for n in (20, 2_500, 1_200)]
        ids = [asked.begin(rows, **{"X-Request-Id": f"{started}"}) for rows in sent]
        time.sleep(after_s)
        kill_replica()
        for task_id, rows in zip(ids, sent, strict=True):
            result = asked.done(task_id)
            found = [prediction["score"] for prediction in result["predictions"]]
            assert found == pytest.approx(asked.scores(rows), abs=1e-9)
            predictions = {prediction["prediction_id"] for prediction in result["predictions"]}
            assert len(predictions) == len(rows)
            # Chunks that were tried again have the same ids.
            assert set(asked.logged(task_id)) == predictions
