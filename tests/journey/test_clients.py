"""A server that asks for keys, asked by clients of each protocol, and without a right key; and what
turned out to be true, told by who asked."""

import json
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest
import tritonclient.grpc as triton_grpc
import tritonclient.http as triton
from tritonclient.grpc import service_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from asked_with_keys import MODEL, PREDICT, ROW, ROWS, ask, make, plain
from http_requests import JSON, Reply, send
from payments import USE_CASE
from penstock.cluster.ingress import grpc_port
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

LATER_ROW = {**ROW, "CUSTOMER_ID": 7, "TX_DATETIME": "2024-04-21T10:00:00Z"}
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
    serving = open_to_all.serving.model_copy(update={"require_key": True, "grpc": True})
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
        made = []
        for name, values in ROWS.items():
            made.append(triton.InferInput(name, [3], np_to_triton_dtype(values.dtype)))
            made[-1].set_data_from_numpy(values, binary_data=binary)
        return made

    @pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
    def test_it_gets_the_numbers_of_the_plain_protocol(self, client, headers, guarded, binary):
        expected = plain(guarded)
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


class TestTritonOverGrpc:
    """The same by gRPC, through the same ingress."""

    @pytest.fixture
    def headers(self, guarded: Settings) -> dict[str, str]:
        return {"authorization": f"Bearer {api_keys.own_token(guarded)}"}

    @pytest.fixture
    def client(self, guarded: Settings) -> Iterator[triton_grpc.InferenceServerClient]:
        port = int(server.url(guarded).rsplit(":", 1)[1])
        with triton_grpc.InferenceServerClient(f"127.0.0.1:{grpc_port(port)}") as client:
            yield client

    @staticmethod
    def tensors() -> list[triton_grpc.InferInput]:
        made = []
        for name, values in ROWS.items():
            made.append(triton_grpc.InferInput(name, [3], np_to_triton_dtype(values.dtype)))
            made[-1].set_data_from_numpy(values)
        return made

    def refused(self, client, headers, **call: Any) -> tuple[str, str]:
        arguments = {"model_name": MODEL, "inputs": self.tensors(), "headers": headers} | call
        with pytest.raises(InferenceServerException) as caught:
            client.infer(**arguments)
        return caught.value.status(), caught.value.message()

    def test_it_gets_the_numbers_of_the_plain_protocol(self, client, headers, guarded):
        expected = plain(guarded)
        sent = headers | {"x-request-id": "the-same"}
        found = client.infer(MODEL, self.tensors(), headers=sent, request_id="7")
        assert found.as_numpy("score").tolist() == [each["score"] for each in expected]
        assert found.as_numpy("label").tolist() == [each["label"] for each in expected]
        assert found.as_numpy("num_missing_features").tolist() == [
            len(each["missing"]) for each in expected
        ]
        response = found.get_response()
        assert (response.id, response.model_name, response.model_version) == ("7", MODEL, "1")
        again = client.infer(MODEL, self.tensors(), headers=sent, request_id="7")
        ids = [answer.as_numpy("prediction_id").tolist() for answer in (found, again)]
        assert ids[0] == ids[1]
        assert len(set(ids[0])) == 3

    def test_values_by_type_are_answered_by_type(self, client, headers, guarded):
        inputs = [tensor._get_tensor() for tensor in self.tensors()]
        fields = {"INT64": "int64_contents", "FP64": "fp64_contents", "BYTES": "bytes_contents"}
        for tensor in inputs:
            values = ROWS[tensor.name].tolist()
            written = [v.encode() if isinstance(v, str) else v for v in values]
            getattr(tensor.contents, fields[tensor.datatype]).extend(written)
        request = service_pb2.ModelInferRequest(model_name=MODEL, model_version="1", inputs=inputs)
        request.outputs.add(name="prediction_id")
        request.outputs.add(name="score")
        # The client's own stub: its `infer` knows raw contents alone.
        response = client._client_stub.ModelInfer(request, metadata=tuple(headers.items()))
        assert [output.name for output in response.outputs] == ["prediction_id", "score"]
        scores = [each["score"] for each in plain(guarded)]
        assert list(response.outputs[1].contents.fp64_contents) == scores
        assert len(set(response.outputs[0].contents.bytes_contents)) == 3
        assert not response.raw_output_contents

    def test_only_the_outputs_asked_for_are_answered(self, client, headers):
        outputs = [triton_grpc.InferRequestedOutput("label")]
        found = client.infer(MODEL, self.tensors(), outputs=outputs, headers=headers)
        assert [output.name for output in found.get_response().outputs] == ["label"]

    def test_the_metadata_is_that_of_http(self, client, headers, guarded):
        token = api_keys.own_token(guarded)
        by_grpc = client.get_model_metadata(MODEL, headers=headers, as_json=True)
        by_http = ask(guarded, token, f"/v2/models/{MODEL}", "GET").json
        for side in ("inputs", "outputs"):
            # protobuf writes whole numbers of 64 bits as texts.
            for tensor in by_grpc[side]:
                tensor["shape"] = [int(size) for size in tensor["shape"]]
        assert by_grpc == by_http
        by_grpc = client.get_server_metadata(headers=headers, as_json=True)
        assert by_grpc == ask(guarded, token, "/v2", "GET").json

    def test_it_asks_for_health(self, client, headers):
        assert client.is_server_live(headers=headers)
        assert client.is_server_ready(headers=headers)
        assert client.is_model_ready(MODEL, headers=headers)
        assert client.is_model_ready(MODEL, "1", headers=headers)
        assert not client.is_model_ready(MODEL, "7", headers=headers)
        assert not client.is_model_ready("nobody", headers=headers)

    def test_a_refusal_has_its_code_and_its_words(self, client, headers, guarded):
        found = self.refused(client, headers, inputs=self.tensors()[:2])
        assert found == (
            "StatusCode.INVALID_ARGUMENT",
            "the field TX_DATETIME is missing ($.inputs[0])",
        )
        found = self.refused(client, headers, model_name="nobody")
        assert found == ("StatusCode.NOT_FOUND", "no model named 'nobody' is served")
        status, words = self.refused(client, headers, model_version="7")
        assert (status, words[:9]) == ("StatusCode.NOT_FOUND", "version '")
        for model in ("..", "a/b", "", "../healthz", f"{MODEL}/versions/1", "ä"):
            assert self.refused(client, headers, model_name=model)[0] == "StatusCode.NOT_FOUND"
        status, words = self.refused(client, {})
        assert status == "StatusCode.UNAUTHENTICATED"
        assert words.startswith("send a valid key")
        other = {"x-api-key": make(guarded, "predict:another")}
        wait_for(
            lambda: self.refused(client, other)[0] == "StatusCode.PERMISSION_DENIED", timeout_s=10
        )
        with pytest.raises(InferenceServerException, match="send a valid key"):
            client.get_model_metadata(MODEL)
        with pytest.raises(InferenceServerException, match="send a valid key"):
            client.is_server_live()

    def test_a_deadline_reaches_the_replica(self, client, headers):
        found = client.infer(MODEL, self.tensors(), headers=headers, client_timeout=60)
        assert len(found.as_numpy("score")) == 3
        status, _ = self.refused(client, headers, client_timeout=1e-6)
        assert status == "StatusCode.DEADLINE_EXCEEDED"

    def test_a_request_too_large_is_refused(self, client, headers, guarded):
        many = triton_grpc.InferInput("TX_DATETIME", [1], "BYTES")
        many.set_data_from_numpy(np.array(["x" * guarded.serving.max_body_bytes], dtype=object))
        assert self.refused(client, headers, inputs=[many])[0] == "StatusCode.RESOURCE_EXHAUSTED"

    @staticmethod
    def listeners(guarded: Settings) -> set[int]:
        port = int(server.url(guarded).rsplit(":", 1)[1])
        found = [
            (one.pid, one.laddr.ip)
            for one in psutil.net_connections("tcp")
            if one.status == psutil.CONN_LISTEN and one.laddr.port == grpc_port(port)
        ]
        assert {address for _, address in found} <= {"127.0.0.1", "::ffff:127.0.0.1"}
        return {pid for pid, _ in found}

    @pytest.mark.slow
    def test_a_redeploy_loses_no_call(self, client, headers, guarded):
        (before,) = self.listeners(guarded)
        otherwise = guarded.serving.model_copy(update={"require_key": False})
        ended, answered = threading.Event(), []

        def ask_on() -> int:
            while not ended.is_set():
                found = client.infer(MODEL, self.tensors(), headers=headers)
                answered.append(len(found.as_numpy("score")))
            return len(answered)

        with ThreadPoolExecutor(1) as threads:
            asking = threads.submit(ask_on)
            try:
                server.start(guarded.model_copy(update={"serving": otherwise}))
                wait_for(lambda: not psutil.pid_exists(before), timeout_s=120)
                wait_for(lambda: len(self.listeners(guarded)) == 1, timeout_s=60)
                num_answered = len(answered)
                wait_for(lambda: len(answered) > num_answered or asking.done())
            finally:
                ended.set()
                server.start(guarded)
            assert asking.result() > num_answered
        assert set(answered) == {3}
        wait_for(lambda: ask(guarded, None, "/healthz", "GET").status == 401, timeout_s=120)

    def test_killed_it_answers_again(self, client, headers, guarded):
        (listener,) = self.listeners(guarded)
        os.kill(listener, signal.SIGKILL)
        wait_for(lambda: not psutil.pid_exists(listener), timeout_s=10)

        def answers() -> bool:
            try:
                return client.is_server_live(headers=headers, client_timeout=1)
            except InferenceServerException:
                return False

        wait_for(answers, timeout_s=60)


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
