"""A server that asks for keys, asked by clients of each protocol, and without a right key; and what
turned out to be true, told by who asked."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from http_requests import JSON, Reply, send
from payments import USE_CASE
from penstock.cluster.local import LocalCluster
from penstock.monitoring.truth import predictions_with_truth
from penstock.serving import api_keys, server
from penstock.serving.client import predict
from penstock.serving.deploy import deploy, undeploy
from penstock.settings import Settings
from projects import Project
from small_model import prepare_on, seal_as, train_small
from waiting import wait_for

pytestmark = pytest.mark.ray

MODEL = "asked_with_keys"
ROW = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": "2024-04-20T10:00:00Z", "TX_AMOUNT": 12.5}
LATER_ROW = {**ROW, "CUSTOMER_ID": 7, "TX_DATETIME": "2024-04-21T10:00:00Z"}
PREDICT = f"/v1/models/{MODEL}/predict"
GUARDED = (
    ("POST", PREDICT),
    ("POST", f"/v1/models/{MODEL}/explain"),
    ("GET", f"/v1/models/{MODEL}"),
    ("POST", "/v1/tables/card_fraud.transactions/events"),
    ("POST", "/v1/feedback"),
    *(("GET", path) for path in ("/", "/healthz", "/readyz", "/metrics", "/v1/models", "/nowhere")),
)


@pytest.fixture(scope="module")
def guarded(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Settings]:
    """A small real model behind keys, on the run's one Ray; without keys again afterwards."""
    open_to_all = prepare_on(project, tmp_path_factory.mktemp("keys"))
    serving = open_to_all.serving.model_copy(update={"require_key": True})
    mine = open_to_all.model_copy(update={"serving": serving})
    run = train_small(mine, "run-1")
    # Of the declared name, for `penstock feedback ingest`; it is not deployed.
    seal_as(mine, run, USE_CASE)
    version = seal_as(mine, run, MODEL)
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


def test_a_key_that_sends_too_much_is_told_to_wait(guarded: Settings):
    _, token = api_keys.create(
        guarded, "loud", [f"predict:{MODEL}"], valid_for=None, max_requests_per_s=0.1
    )
    wait_for(lambda: ask(guarded, token).status == 200, timeout_s=10)
    reply = ask(guarded, token)
    assert (reply.status, reply.json["code"]) == (429, "too_many_requests")
    assert 1 <= int(reply.headers["retry-after"]) <= 10


def test_the_command_has_a_key_of_its_own(guarded: Settings):
    answer = predict(server.url(guarded), MODEL, json.dumps(ROW), token=api_keys.own_token(guarded))
    assert len(answer["predictions"]) == 1


class TestTriton:
    """The public client of the Open Inference Protocol."""

    @pytest.fixture
    def headers(self, guarded: Settings) -> dict[str, str]:
        return {"Authorization": f"Bearer {api_keys.own_token(guarded)}"}

    @pytest.fixture
    def client(self, guarded: Settings) -> Iterator[triton.InferenceServerClient]:
        with triton.InferenceServerClient(server.url(guarded).removeprefix("http://")) as client:
            yield client

    @staticmethod
    def tensors(*, binary: bool) -> list[triton.InferInput]:
        given = {
            "CUSTOMER_ID": np.array([1, 2, 99_999]),
            "TERMINAL_ID": np.array([2, 3, 4]),
            "TX_DATETIME": np.array(["2024-04-20T10:00:00Z"] * 3, dtype=object),
            "TX_AMOUNT": np.array([12.5, 300.0, 7.0]),
        }
        made = []
        for name, values in given.items():
            made.append(triton.InferInput(name, [3], np_to_triton_dtype(values.dtype)))
            made[-1].set_data_from_numpy(values, binary_data=binary)
        return made

    def plain(self, guarded: Settings) -> list[dict]:
        rows = [
            {**ROW, "CUSTOMER_ID": customer, "TERMINAL_ID": terminal, "TX_AMOUNT": amount}
            for customer, terminal, amount in ((1, 2, 12.5), (2, 3, 300.0), (99_999, 4, 7.0))
        ]
        token = api_keys.own_token(guarded)
        return predict(server.url(guarded), MODEL, json.dumps(rows), token=token)["predictions"]

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_it_gets_the_numbers_of_the_plain_protocol(self, client, headers, guarded, binary):
        expected = self.plain(guarded)
        names = ("score", "label", "num_missing_features", "prediction_id")
        outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name in names]
        found = client.infer(
            MODEL, self.tensors(binary=binary), outputs=outputs, headers=headers, request_id="7"
        )
        assert found.as_numpy("score").tolist() == [each["score"] for each in expected]
        assert found.as_numpy("label").tolist() == [each["label"] for each in expected]
        assert found.as_numpy("num_missing_features").tolist() == [
            len(each["missing"]) for each in expected
        ]
        assert len(set(found.as_numpy("prediction_id").tolist())) == 3
        assert found.get_response()["id"] == "7"

    def test_the_metadata_is_what_a_request_needs(self, client, headers, guarded):
        described = client.get_model_metadata(MODEL, headers=headers)
        version = described["versions"][0]
        assert [(each["name"], each["datatype"]) for each in described["inputs"]] == [
            (each.name(), each.datatype()) for each in self.tensors(binary=True)
        ]
        found = client.infer(
            MODEL, self.tensors(binary=True), model_version=version, headers=headers
        ).get_response()
        assert [(each["name"], each["datatype"]) for each in found["outputs"]] == [
            (each["name"], each["datatype"]) for each in described["outputs"]
        ]

    def test_it_asks_for_health(self, client, headers):
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready(MODEL, headers=headers)
        assert client.is_model_ready(MODEL, "1", headers=headers)
        assert not client.is_model_ready(MODEL, "7", headers=headers)
        assert client.get_server_metadata(headers=headers)["name"] == "penstock"

    def test_a_refusal_reaches_it_as_its_own_error(self, client, headers):
        inputs = self.tensors(binary=True)[:2]
        with pytest.raises(InferenceServerException, match="the field TX_DATETIME is missing"):
            client.infer(MODEL, inputs, headers=headers)
        with pytest.raises(InferenceServerException, match="no model named 'nobody'"):
            client.infer("nobody", inputs, headers=headers)
        with pytest.raises(InferenceServerException, match="send a valid key"):
            client.infer(MODEL, inputs)


def test_mlflows_clients_are_answered_too(guarded: Settings):
    token = api_keys.own_token(guarded)
    port = int(server.url(guarded).rsplit(":", 1)[1])
    body = {"dataframe_split": {"columns": list(ROW), "data": [list(ROW.values())]}}
    headers = {**JSON, "Authorization": f"Bearer {token}"}
    path = f"/v1/models/{MODEL}/invocations"
    reply = send(port, path, json.dumps(body), headers=headers)
    plain = predict(server.url(guarded), MODEL, json.dumps(ROW), token=token)
    assert reply.json == {"predictions": [plain["predictions"][0]["score"]]}


class TestFeedback:
    """From an answer to its truth, by HTTP and in a file."""

    def send(self, guarded: Settings, token: str, body: object, **headers: str) -> Reply:
        port = int(server.url(guarded).rsplit(":", 1)[1])
        sent = {**JSON, "Authorization": f"Bearer {token}", **headers}
        return send(port, "/v1/feedback", json.dumps(body), headers=sent)

    def test_truths_by_id_by_entity_and_in_a_file_meet_their_predictions(
        self, guarded: Settings, project: Project, tmp_path: Path
    ):
        url, own = server.url(guarded), api_keys.own_token(guarded)
        rows = json.dumps([{**ROW, "CUSTOMER_ID": 5}, {**ROW, "CUSTOMER_ID": 6}, LATER_ROW])
        asked = predict(url, MODEL, rows, token=own)["predictions"]
        first, second, third = (each["prediction_id"] for each in asked)
        told = {
            "model": MODEL,
            "feedback": [
                {"prediction_id": first, "truth": 1},
                {"entity": {"CUSTOMER_ID": 7}, "event_time": LATER_ROW["TX_DATETIME"], "truth": 1},
            ],
        }
        token = make(guarded, "feedback")
        wait_for(lambda: self.send(guarded, token, told).status == 202, timeout_s=10)
        assert self.send(guarded, token, told).json["accepted"] == 2
        mine = Project(storage=guarded.storage_path)
        file = tmp_path / "truths.csv"
        file.write_text(f"prediction_id,truth\n{second},0\nnobody-0,1\n{second},7\n")
        ingested = mine.must("feedback", "ingest", USE_CASE, str(file), "--json").json
        counts = ("num_read", "num_kept", "num_quarantined")
        assert [ingested[name] for name in counts] == [3, 2, 1]
        shown = mine.must("feedback", "show", USE_CASE, "--json").json
        names = ("num_feedback", "num_repeated", "num_unmatched", "num_with_truth")
        assert [shown[name] for name in names] == [4, 0, 1, 3]
        # Payments of 2024, told of now: later than the model declares, and taken.
        assert shown["num_late"] == 3
        truths = predictions_with_truth(guarded, USE_CASE).filter(pl.col("truth").is_not_null())
        found = dict(truths.select("prediction_id", "truth").collect().rows())
        assert found == {first: 1.0, second: 0.0, third: 1.0}

    def test_what_cannot_be_is_refused_and_other_keys_open_nothing(self, guarded: Settings):
        body = {"model": MODEL, "feedback": [{"prediction_id": "a-0", "truth": 2}]}
        own = api_keys.own_token(guarded)
        refused = self.send(guarded, own, body)
        assert (refused.status, refused.json["path"]) == (422, "$.feedback[0].truth")
        assert self.send(guarded, own, body | {"model": "nobody"}).json["code"] == "unknown_model"
        assert self.send(guarded, own, body, Host="example.com").json["code"] == "wrong_host"
        page = self.send(guarded, own, body, Origin="http://example.com")
        assert page.json["code"] == "wrong_origin"
        other = make(guarded, "read", "predict:*", "push:*")
        wait_for(lambda: self.send(guarded, other, body).status == 403, timeout_s=10)
