"""The OpenAPI document held against the running server: good and bad requests made out of it."""

import json
from collections.abc import Iterator

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
from http_requests import send
from penstock.cluster.local import LocalCluster
from penstock.serving import server
from penstock.serving.deploy import deploy, undeploy
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
