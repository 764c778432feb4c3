"""The OpenAPI document held against the running server: good and bad requests made out of it."""

import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given
from hypothesis import settings as how
from hypothesis import strategies as st
from schemathesis.checks import not_a_server_error
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from cases import some_slow
from explained import explanations_of
from http_requests import send
from payments import USE_CASE
from penstock.cluster.local import LocalCluster
from penstock.errors import NotFoundError
from penstock.serving import server
from penstock.serving.deploy import deploy, undeploy
from penstock.serving.past_predictions import explain_prediction, find_prediction
from penstock.settings import Settings
from projects import Project
from small_model import prepare_on, seal_as, train_small

pytestmark = pytest.mark.ray

MODEL = "described"
PAGE = f"/v1/models/{MODEL}/openapi.json"
MAX_GROWTH_BYTES = 50 << 20
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def served(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    mine = prepare_on(project, tmp_path_factory.mktemp("described"))
    try:
        deploy(mine, seal_as(mine, train_small(mine, "run-1"), MODEL), report=lambda _: None)
        yield mine
    finally:
        undeploy(mine, MODEL)


def replica() -> psutil.Process:
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    (found,) = deployment["replicas"]
    return psutil.Process(found["pid"])


@pytest.mark.parametrize("num_cases", some_slow((200, 10_000), in_every_run={200}))
def test_every_answer_is_one_that_the_document_names_and_none_is_our_fault(
    served: Settings, num_cases: int
):
    url = server.url(served)
    found = send(int(url.rsplit(":", 1)[1]), PAGE, method="GET")
    assert found.status == 200
    schema = schemathesis.openapi.from_dict(json.loads(found.body))
    cases = st.one_of(
        operation.ok().as_strategy(generation_mode=mode)
        for operation in schema.get_all_operations()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE)
    )
    before_bytes = replica().memory_info().rss
    statuses: set[int] = set()

    with requests.Session() as session:

        @given(case=cases)
        @how(
            max_examples=num_cases,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        def ask(case):
            if str((case.headers or {}).get("X-Timeout-Ms", "")).isdigit():
                # Who waits a millisecond gets no answer, as the document says.
                case.headers["X-Timeout-Ms"] = "60000"
            answer = case.call(base_url=url, session=session)
            statuses.add(answer.status_code)
            case.validate_response(answer, checks=CHECKS)

        ask()
    assert {200, 422} <= statuses
    assert replica().memory_info().rss - before_bytes < MAX_GROWTH_BYTES


ROW = {
    "CUSTOMER_ID": 7,
    "TERMINAL_ID": 3,
    "TX_DATETIME": "2024-04-20T10:00:00Z",
    "TX_AMOUNT": 400.0,
}
EXPLAIN = f"/v1/models/{MODEL}/explain"


def port_of(served: Settings) -> int:
    return int(server.url(served).rsplit(":", 1)[1])


def explained(port: int, body: str, path: str = EXPLAIN) -> dict:
    return explanations_of(port, path, body)


def contributions(told: dict) -> dict[str, float]:
    return {part["feature"]: part["contribution"] for part in told["contributions"]}


class TestExplain:
    """On the same deployment: its model gives explanations."""

    def test_the_parts_add_up_to_the_score_that_predict_gives(self, served: Settings):
        brought = {**ROW, "CUSTOMER_ID_NB_TX_7DAY_WINDOW": 99}
        rows = [ROW, {**ROW, "CUSTOMER_ID": -1}, brought]
        port, body = port_of(served), json.dumps({"rows": rows})
        answer = explained(port, body)
        predicted = send(port, f"/v1/models/{MODEL}/predict", body).json["predictions"]
        assert answer["version"] == 1
        for told, prediction in zip(answer["explanations"], predicted, strict=True):
            assert told["score"] == pytest.approx(prediction["score"], abs=1e-6)
            assert told["missing"] == prediction["missing"]
            parts = contributions(told)
            assert told["base_score"] + sum(parts.values()) == pytest.approx(
                told["score"], abs=1e-6
            )
            amount = next(p for p in told["contributions"] if p["feature"] == "TX_AMOUNT")
            assert amount["value"] == ROW["TX_AMOUNT"]
        assert "Missing: " in answer["explanations"][1]["text"]
        values = {p["feature"]: p["value"] for p in answer["explanations"][2]["contributions"]}
        assert values["CUSTOMER_ID_NB_TX_7DAY_WINDOW"] == 99
        assert explained(port, body, f"/v1/models/{MODEL}/versions/1/explain") == answer

    def test_the_work_is_done_beside_the_replica_and_predict_goes_on(self, served: Settings):
        port = port_of(served)
        many = json.dumps({"rows": [ROW] * 16})
        explained(port, many)
        (beside,) = replica().children()
        assert beside.nice() == 19
        loaded = {Path(part.path).name for part in replica().memory_maps()}
        assert not any("llvmlite" in name or "_cext" in name for name in loaded)
        with ThreadPoolExecutor(2) as threads:
            busy = [threads.submit(send, port, EXPLAIN, many) for _ in range(2)]
            num_before = 0
            while not all(each.done() for each in busy):
                reply = send(port, f"/v1/models/{MODEL}/predict", json.dumps({"rows": [ROW]}))
                assert reply.status == 200
                num_before += not all(each.done() for each in busy)
            assert {each.result().status for each in busy} <= {200, 504}
        assert num_before > 0

    def test_a_logged_prediction_is_explained_as_it_was_made(self, served: Settings):
        port, body = port_of(served), json.dumps({"rows": [ROW]})
        (given,) = send(port, f"/v1/models/{MODEL}/predict", body).json["predictions"]
        past = find_prediction(served, USE_CASE, given["prediction_id"])
        (told,) = explain_prediction(served, past)["explanations"]
        assert told["score"] == pytest.approx(given["score"], abs=1e-6)
        (asked,) = explained(port, body)["explanations"]
        assert contributions(told) == pytest.approx(contributions(asked), abs=1e-9)
        with pytest.raises(NotFoundError, match="has no prediction"):
            find_prediction(served, USE_CASE, "unheard-of-0")
