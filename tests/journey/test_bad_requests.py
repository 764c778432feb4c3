"""Every bad request that a served model must survive, sent to a live server."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from http_requests import JSON, Reply, send, send_raw
from payments import TRANSACTIONS, make_payments
from penstock.cluster.local import LocalCluster
from penstock.serving.deploy import Deployment, deploy, undeploy
from penstock.settings import Settings
from projects import Project
from small_model import prepare_on, seal_as, train_small

pytestmark = pytest.mark.ray

MODEL = "checked_by_requests"
ROW = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": "2024-04-20T10:00:00Z", "TX_AMOUNT": 12.5}
MAX_IN_FLIGHT = 8


@dataclass(frozen=True)
class Server:
    settings: Settings
    deployment: Deployment
    replicas: frozenset[tuple[str, int]]
    """The actor and the process of each replica that came up with the deployment."""

    @property
    def port(self) -> int:
        return int(self.deployment.url.rsplit(":", 1)[1])

    @property
    def predict(self) -> str:
        return f"/v1/models/{MODEL}/predict"

    def send(
        self,
        body: bytes | str = b"",
        *,
        path: str | None = None,
        method: str = "POST",
        headers: dict[str, str] = JSON,
    ) -> Reply:
        return send(self.port, path or self.predict, body, method=method, headers=headers)

    def raw(self, text: bytes) -> bytes:
        return send_raw(self.port, text)

    def ask(self, row: dict) -> dict:
        reply = self.send(json.dumps({"rows": [row]}))
        assert reply.status == 200, reply.body
        return reply.json["predictions"][0]


def running_replicas() -> frozenset[tuple[str, int]]:
    from ray.serve.context import _get_global_client

    (deployment,) = (
        _get_global_client().get_serve_details()["applications"][MODEL]["deployments"].values()
    )
    return frozenset((replica["actor_id"], replica["pid"]) for replica in deployment["replicas"])


@pytest.fixture(scope="module")
def server(
    project: Project, ray_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A small real model with features, in a storage of its own, on the run's one Ray."""
    storage = tmp_path_factory.mktemp("requests")
    mine = prepare_on(project, storage)
    version = seal_as(
        mine,
        train_small(mine, "run-1"),
        MODEL,
        max_requests_in_flight=MAX_IN_FLIGHT,
        # Long enough that requests pile up when the test wants them to.
        batch_wait_s=0.05,
        max_batch_size=64,
        max_rows_per_request=100,
    )
    try:
        deployment = deploy(mine, version, report=lambda _: None)
        yield Server(mine, deployment, running_replicas())
    finally:
        undeploy(mine, MODEL)


def text_of(**changes: str | None) -> str:
    """One row as JSON text; a field set to None is left out."""
    fields = {**{k: json.dumps(v) for k, v in ROW.items()}, **changes}
    return ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)


def body_of(**changes: str | None) -> str:
    return f'{{"rows":[{{{text_of(**changes)}}}]}}'


def refused(reply: Reply, status: int) -> dict:
    """A refusal has its status and a body of code, message and path, in JSON."""
    assert reply.status == status, reply.body
    assert reply.headers["content-type"] == "application/json"
    assert reply.json.keys() == {"code", "message", "path"}
    return reply.json


class TestGoodRequests:
    def test_a_known_customer_has_every_feature(self, server: Server):
        prediction = server.ask(ROW)
        assert prediction["missing"] == []
        assert 0 <= prediction["score"] <= 1
        assert prediction["label"] == int(prediction["score"] >= 0.5)

    def test_an_unknown_entity_is_answered_with_its_features_named(self, server: Server):
        missing = server.ask({**ROW, "CUSTOMER_ID": 10**15})["missing"]
        assert len(missing) == 6
        assert all(name.startswith("CUSTOMER_ID_") for name in missing)

    def test_a_row_scores_the_same_alone_and_among_others(self, server: Server):
        rows = [{**ROW, "CUSTOMER_ID": n, "TX_AMOUNT": 20.0 * n} for n in range(50)]
        together = server.send(json.dumps({"rows": rows})).json["predictions"]
        for n in (0, 17, 49):
            assert server.ask(rows[n])["score"] == pytest.approx(together[n]["score"], abs=1e-6)

    def test_the_same_request_sent_again_gets_the_same_ids(self, server: Server):
        headers = {**JSON, "X-Request-Id": "order-7"}
        first, again = (server.send(body_of(), headers=headers).json for _ in range(2))
        assert first == again
        other = server.send(body_of(), headers={**JSON, "X-Request-Id": "order-8"}).json
        assert other["predictions"][0]["prediction_id"] != first["predictions"][0]["prediction_id"]

    def test_the_version_can_be_named(self, server: Server):
        path = f"/v1/models/{MODEL}/versions/1/predict"
        assert server.send(body_of(), path=path).json["version"] == 1


class TestBodies:
    @pytest.mark.parametrize(
        "body",
        ["", "{", "nonsense", b"\xff\xfe", b'{"rows":"\xc3\x28"}', "[" * 100_000, '{"rows":[]}}'],
        ids=["empty", "cut", "text", "bad UTF-8", "bad UTF-8 inside", "deep", "too much"],
    )
    def test_unreadable_json_is_400(self, server: Server, body: bytes | str):
        assert refused(server.send(body), 400)["code"] == "unreadable"

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("TX_AMOUNT", "NaN"),
            ("TX_AMOUNT", "Infinity"),
            ("TX_AMOUNT", "-Infinity"),
            ("TX_AMOUNT", "1e999"),
            ("TX_AMOUNT", '"7"'),
            ("TX_AMOUNT", "true"),
            ("TX_AMOUNT", "null"),
            ("CUSTOMER_ID", "9223372036854775808"),
            ("CUSTOMER_ID", "1" * 6_000),
            ("CUSTOMER_ID", "1.5"),
            ("CUSTOMER_ID", '"7"'),
            ("CUSTOMER_ID", "true"),
            ("TX_DATETIME", '"yesterday"'),
            ("TX_DATETIME", '"2018-02-30T00:00:00Z"'),
            ("TX_DATETIME", "1533722400"),
        ],
    )
    def test_a_value_that_does_not_fit_is_422(self, server: Server, field: str, value: str):
        answer = refused(server.send(body_of(**{field: value})), 422)
        assert answer["path"] in (f"$.rows[0].{field}", "$")

    @pytest.mark.parametrize(
        ("body", "code"),
        [
            ('{"rows":[]}', "no_rows"),
            ("[]", "wrong_type"),
            ('{"rows":[{}]}', "missing_field"),
            ('{"rows":[{' + text_of(TX_AMOUNT=None) + "}]}", "missing_field"),
            ('{"rows":[{' + text_of(COLOUR='"red"') + "}]}", "unknown_key"),
            ('{"rows":[{' + text_of() + ',"TX_AMOUNT":1}]}', "duplicate_key"),
            ('{"rows":[{' + text_of() + '}],"rows":[]}', "duplicate_key"),
            ('{"rows":[{' + text_of() + '}],"model":"x"}', "unknown_key"),
            ('{"rows":[{' + text_of() + '},{"CUSTOMER_ID":1}]}', "missing_field"),
            ('{"rows":[' + ",".join(["{}"] * 101) + "]}", "too_many_rows"),
        ],
    )
    def test_a_wrong_shape_is_422(self, server: Server, body: str, code: str):
        assert refused(server.send(body), 422)["code"] == code

    @pytest.mark.parametrize("num_bytes", [(1 << 20) + 1, 5 << 20])
    def test_a_body_too_large_is_413(self, server: Server, num_bytes: int):
        refused(server.send(b" " * num_bytes), 413)

    def test_a_body_too_large_in_chunks_is_413(self, server: Server):
        chunks = (b" " * 65_536 for _ in range(40))
        reply = server.send(chunks, headers={**JSON, "Transfer-Encoding": "chunked"})  # type: ignore[arg-type]  # http.client takes an iterable too
        refused(reply, 413)

    @settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(body=st.binary(max_size=200) | st.text('{}[]":,0123456789.eE+-nulrowsTX_', max_size=200))
    def test_any_body_is_answered_with_4xx(self, server: Server, body: bytes | str):
        data = body if isinstance(body, bytes) else body.encode()
        reply = server.send(data)
        assert reply.status in (400, 422)
        refused(reply, reply.status)


class TestHeadsAndPaths:
    @pytest.mark.parametrize(
        "headers",
        [
            {},
            {"Content-Type": "text/plain"},
            {"Content-Type": "application/x-www-form-urlencoded"},
            {"Content-Type": "application/json; charset=latin-1"},
            {**JSON, "Content-Encoding": "gzip"},
        ],
    )
    def test_a_wrong_content_type_is_415(self, server: Server, headers: dict[str, str]):
        refused(server.send(body_of(), headers=headers), 415)

    @pytest.mark.parametrize(
        ("path", "code"),
        [
            ("/v1/models/nobody/predict", "unknown_model"),
            (f"/v1/models/{MODEL}/versions/99/predict", "unknown_version"),
            (f"/v1/models/{MODEL}/versions/latest/predict", "unknown_version"),
            (f"/v1/models/{MODEL}/else", "unknown_path"),
            (f"/v1/models/{MODEL}x/predict", "unknown_model"),
            ("/", "unknown_path"),
            ("/v1/models/%ff%00/predict", "unknown_model"),
            ("/../../etc/passwd", "unknown_path"),
        ],
    )
    def test_an_unknown_model_version_or_path_is_404(self, server: Server, path: str, code: str):
        assert refused(server.send(body_of(), path=path), 404)["code"] == code

    def test_a_wrong_method_is_405_and_says_which_is_right(self, server: Server):
        for method, path, allowed in (
            ("GET", server.predict, "POST"),
            ("PUT", server.predict, "POST"),
            ("OPTIONS", server.predict, "POST"),
            ("POST", "/healthz", "GET"),
            ("DELETE", f"/v1/models/{MODEL}", "GET"),
        ):
            reply = server.send(method=method, path=path)
            refused(reply, 405)
            assert reply.headers["allow"] == allowed

    @pytest.mark.parametrize("path", [None, "/healthz", "/metrics"])
    def test_another_host_is_refused(self, server: Server, path: str | None):
        refused(server.send(body_of(), path=path, headers={**JSON, "Host": "evil.example"}), 421)

    def test_a_page_of_another_server_is_refused(self, server: Server):
        headers = {**JSON, "Origin": "https://evil.example"}
        refused(server.send(body_of(), headers=headers), 403)

    def test_a_request_id_without_end_is_422(self, server: Server):
        refused(server.send(body_of(), headers={**JSON, "X-Request-Id": "x" * 5_000}), 422)

    def test_who_waits_a_moment_only_gets_no_late_answer(self, server: Server):
        # The server waits for company for 50 ms.
        late = refused(server.send(body_of(), headers={**JSON, "X-Timeout-Ms": "5"}), 504)
        assert late["code"] == "deadline_exceeded"
        assert server.send(body_of(), headers={**JSON, "X-Timeout-Ms": "20000"}).status == 200

    @pytest.mark.parametrize("given", ["", "0", "-1", "1.5", "soon", "9" * 30])
    def test_a_time_to_wait_that_is_none_is_422(self, server: Server, given: str):
        headers = {**JSON, "X-Timeout-Ms": given}
        assert refused(server.send(body_of(), headers=headers), 422)["code"] == "bad_timeout"

    def test_what_is_no_http_ends_at_the_ingress(self, server: Server):
        assert server.raw(b"\x16\x03\x01nonsense\r\n\r\n").startswith(b"HTTP/1.1 400 ")
        assert server.ask(ROW)["missing"] == []

    def test_a_client_that_leaves_in_the_middle_harms_nobody(self, server: Server):
        head = f"POST {server.predict} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
        for _ in range(20):
            with socket.create_connection(("127.0.0.1", server.port), timeout=30) as wire:
                wire.sendall(head.encode() + b'Content-Length: 500\r\n\r\n{"rows":[')
        assert server.ask(ROW)["missing"] == []


class TestEvents:
    """The route of pushed events, at the root application."""

    PATH = f"/v1/tables/{TRANSACTIONS}/events"

    def test_what_is_answered_is_on_disk_and_once(self, server: Server, project: Project):
        from penstock.data.events.push_log import PushLog

        [payment] = json.loads(make_payments(1).write_json())
        payment["TX_DATETIME"] = "2024-04-30T10:00:00Z"
        first, again = (server.send(json.dumps([payment]), path=self.PATH) for _ in range(2))
        assert (first.status, first.json) == (again.status, again.json)
        assert first.status == 202
        kept: list[dict] = []
        # The root application is of whoever came first to the run's one Ray: its storage, or ours.
        for settings_of_root in (project.settings, server.settings):
            log = PushLog.of(settings_of_root)
            kept += [json.loads(value) for _, value in log.read(TRANSACTIONS, 0, 100)]
            log.close()
        assert kept.count(payment) == 1

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ("{", 400, "unreadable"),
            ("[]", 422, "no_events"),
            ("[1]", 422, "wrong_type"),
            ("[{}]", 422, "missing_column"),
            (" " * ((1 << 20) + 1), 413, "too_large"),
        ],
        ids=["cut", "empty", "number", "no columns", "too large"],
    )
    def test_a_bad_body_is_refused(self, server: Server, body: str, status: int, code: str):
        assert refused(server.send(body, path=self.PATH), status)["code"] == code

    def test_heads_and_paths_are_held_to_the_same_rules(self, server: Server):
        for status, change in (
            (404, {"path": "/v1/tables/card_fraud.nothing/events"}),
            (405, {"method": "PUT"}),
            (415, {"headers": {"Content-Type": "text/csv"}}),
            (421, {"headers": {**JSON, "Host": "evil.example"}}),
        ):
            refused(server.send("[]", **({"path": self.PATH} | change)), status)

    @settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(body=st.binary(max_size=200) | st.text('{}[]":,0123456789.eE+-nulTX_', max_size=200))
    def test_any_body_is_answered_with_4xx(self, server: Server, body: bytes | str):
        data = body if isinstance(body, bytes) else body.encode()
        reply = server.send(data, path=self.PATH)
        assert reply.status in (400, 422)
        refused(reply, reply.status)


class TestLoad:
    def test_a_full_queue_is_503_with_retry_after_and_the_rest_is_answered(self, server: Server):
        replies: list[Reply] = []

        def ask() -> None:
            replies.append(server.send(body_of()))

        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not any(r.status == 503 for r in replies):
            threads = [threading.Thread(target=ask) for _ in range(6 * MAX_IN_FLIGHT)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        full = [reply for reply in replies if reply.status != 200]
        assert full
        for reply in full:
            assert refused(reply, 503)["code"] == "overloaded"
            assert int(reply.headers["retry-after"]) >= 1
        assert any(reply.status == 200 for reply in replies)
        assert server.ask(ROW)["missing"] == []


class TestTheServerItself:
    def test_it_is_healthy_and_ready(self, server: Server):
        assert server.send(method="GET", path="/healthz").json == {"status": "ok"}
        ready = server.send(method="GET", path="/readyz")
        assert ready.status == 200
        assert ready.json["models"][MODEL] == "RUNNING"

    def test_its_metrics_count_what_was_refused(self, server: Server):
        refused(server.send("{"), 400)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            text = server.send(method="GET", path="/metrics").body.decode()
            lines = [x for x in text.splitlines() if x.startswith("ray_penstock_predict_requests")]
            if any('code="400"' in line and MODEL in line for line in lines):
                return
            time.sleep(1)
        pytest.fail(f"no count of refusals in\n{text[:2000]}")

    def test_after_all_of_this_its_replica_is_the_one_that_started(self, server: Server):
        from ray import serve

        application = serve.status().applications[MODEL]
        assert str(application.status.value) == "RUNNING"
        assert len(server.replicas) == 1
        assert running_replicas() == server.replicas
        assert server.ask(ROW)["missing"] == []
