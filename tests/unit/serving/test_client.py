import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from penstock.errors import BusyError, ClusterError, NotFoundError, RequestError
from penstock.registry.package import RequestField
from penstock.serving import client


class Canned(BaseHTTPRequestHandler):
    """Answers with what the test put on the server, and keeps what came."""

    def do_POST(self):
        length = int(self.headers["Content-Length"])
        self.server.seen.append((self.path, self.rfile.read(length)))
        status, body = self.server.answer
        self.send_response(status)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None: ...


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Canned)
    server.seen, server.answer = [], (200, b'{"model": "m", "predictions": []}')
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


@pytest.mark.parametrize(
    ("text", "sent"),
    [
        ('{"A": 1}', '{"rows":[{"A": 1}]}'),
        ('[{"A": 1}]', '{"rows":[{"A": 1}]}'),
        ('{"rows": [{"A": 1}]}', '{"rows": [{"A": 1}]}'),
        ('{"A": 1, "A": 2}', '{"rows":[{"A": 1, "A": 2}]}'),
    ],
)
def test_a_row_rows_and_a_request_are_sent_as_they_were_written(server, text: str, sent: str):
    client.predict(url(server), "m", text)
    assert server.seen == [("/v1/models/m/predict", sent.encode())]


def test_a_version_is_asked_for_in_the_path(server):
    client.predict(url(server), "m", "{}", version=3)
    assert server.seen[0][0] == "/v1/models/m/versions/3/predict"


def test_text_that_is_no_json_is_the_callers_mistake():
    with pytest.raises(RequestError, match="not JSON") as caught:
        client.predict("http://127.0.0.1:9", "m", "{A: 1}")
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("status", "error", "exit_code"),
    [(422, RequestError, 2), (404, NotFoundError, 2), (503, ClusterError, 1)],
)
def test_a_refusal_becomes_our_own_error(server, status: int, error: type, exit_code: int):
    body = {"code": "c", "message": "what is wrong", "path": "$.rows[0]"}
    server.answer = (status, json.dumps(body).encode())
    with pytest.raises(error, match="what is wrong") as caught:
        client.predict(url(server), "m", "{}")
    assert caught.value.exit_code == exit_code


def test_a_server_with_too_much_in_flight_is_busy(server):
    body = {"code": "overloaded", "message": "768 requests are in flight", "path": "$"}
    server.answer = (503, json.dumps(body).encode())
    with pytest.raises(BusyError, match="in flight") as caught:
        client.predict(url(server), "m", "{}")
    assert caught.value.exit_code == 75


def test_an_answer_that_is_no_json_is_our_fault(server):
    for answer in ((500, b"<html>"), (200, b"<html>")):
        server.answer = answer
        with pytest.raises(ClusterError, match="JSON"):
            client.predict(url(server), "m", "{}")


def test_no_server_says_what_to_start():
    with pytest.raises(ClusterError, match="penstock up"):
        client.predict("http://127.0.0.1:9", "m", "{}")


def test_the_example_is_a_request_of_every_type():
    fields = [RequestField(name=kind, dtype=kind) for kind in client._EXAMPLES]
    (row,) = json.loads(client.example_body(fields))["rows"]
    assert row.keys() == client._EXAMPLES.keys()
