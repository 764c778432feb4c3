"""A server that asks for keys, asked without one, with a wrong one, and with one that is revoked."""

import json
import shutil
from collections.abc import Iterator

import pytest

from http_requests import JSON, Reply, send
from payments import end_of_day
from penstock.cluster.local import LocalCluster, state_path
from penstock.serving import api_keys, server
from penstock.serving.client import predict
from penstock.serving.deploy import deploy, undeploy
from penstock.settings import Settings
from projects import Project
from small_model import prepare, seal_as, train_small
from waiting import wait_for

pytestmark = pytest.mark.ray

MODEL = "asked_with_keys"
ROW = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": "2024-04-20T10:00:00Z", "TX_AMOUNT": 12.5}
PREDICT = f"/v1/models/{MODEL}/predict"
GUARDED = (
    ("POST", PREDICT),
    ("GET", f"/v1/models/{MODEL}"),
    ("POST", "/v1/tables/card_fraud.transactions/events"),
    *(("GET", path) for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/nowhere")),
)


@pytest.fixture(scope="module")
def guarded(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """A small real model behind keys, on the run's one Ray; without keys again afterwards."""
    from penstock.features.materialize import materialize

    open_to_all = prepare(tmp_path_factory.mktemp("keys"))
    serving = open_to_all.serving.model_copy(update={"require_key": True})
    mine = open_to_all.model_copy(update={"serving": serving})
    shutil.copy(state_path(project.settings), state_path(mine))
    materialize(mine, "card_fraud", until=end_of_day(60))
    version = seal_as(mine, train_small(mine, "run-1"), MODEL)
    try:
        deploy(mine, version, report=lambda _: None)
        yield mine
    finally:
        undeploy(mine, MODEL)
        server.start(project.settings)


def ask(settings: Settings, token: str | None, path: str = PREDICT, method: str = "POST") -> Reply:
    port = int(server.url(settings).rsplit(":", 1)[1])
    headers = JSON if token is None else {**JSON, "Authorization": f"Bearer {token}"}
    return send(port, path, json.dumps({"rows": [ROW]}), method=method, headers=headers)


def make(settings: Settings, *scopes: str) -> str:
    return api_keys.create(settings, "tests", scopes, valid_for=None)[1]


@pytest.mark.parametrize(("method", "path"), GUARDED)
def test_without_a_key_nothing_answers(guarded: Settings, method: str, path: str):
    for token in (None, "beef.beef"):
        reply = ask(guarded, token, path, method)
        assert reply.status == 401, reply.body
        assert reply.headers["www-authenticate"] == 'Bearer realm="penstock"'
        assert reply.json["code"] == "unauthorized"


def test_the_ingress_names_no_route(guarded: Settings):
    reply = ask(guarded, None, "/-/routes", "GET")
    assert (reply.status, reply.json["code"]) == (404, "unknown_path")


def test_a_key_opens_its_model_and_no_other_door(guarded: Settings):
    token = make(guarded, f"predict:{MODEL}")
    other = make(guarded, "predict:another", "read")
    wait_for(lambda: ask(guarded, token).status == 200, timeout_s=10)
    assert ask(guarded, other).status == 403
    wait_for(lambda: ask(guarded, token, "/v1/models", "GET").status == 403, timeout_s=10)
    assert ask(guarded, other, "/v1/models", "GET").status == 200


def test_a_key_that_is_revoked_is_refused_soon(guarded: Settings):
    token = make(guarded, "predict:*")
    wait_for(lambda: ask(guarded, token).status == 200, timeout_s=10)
    api_keys.revoke(guarded, token.partition(".")[0])
    wait_for(lambda: ask(guarded, token).status == 401, timeout_s=10)


def test_the_command_has_a_key_of_its_own(guarded: Settings):
    answer = predict(server.url(guarded), MODEL, json.dumps(ROW), token=api_keys.own_token(guarded))
    assert len(answer["predictions"]) == 1
