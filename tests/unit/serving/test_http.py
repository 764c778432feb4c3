import asyncio
import json
from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.serving import http

LOOPBACK = (b"host", b"127.0.0.1:8000")


class Body:
    """A body that arrives in pieces; counts how often it is asked for."""

    def __init__(self, *chunks: bytes):
        self.chunks = list(chunks)
        self.num_reads = 0

    async def __call__(self) -> dict[str, Any]:
        self.num_reads += 1
        if not self.chunks:
            return {"type": "http.disconnect"}
        chunk = self.chunks.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(self.chunks)}


def read(body: Body, *headers: tuple[bytes, bytes], max_bytes: int = 10) -> bytes:
    return asyncio.run(http.read_body(headers, body, max_bytes=max_bytes))


class TestHost:
    @pytest.mark.parametrize(
        "host",
        [b"127.0.0.1", b"127.0.0.1:8000", b"localhost:1", b"LOCALHOST", b"[::1]", b"[::1]:9"],
    )
    def test_loopback_names_are_taken(self, host: bytes):
        http.check_host([(b"host", host)])

    @pytest.mark.parametrize(
        "host",
        [
            b"",
            b"evil.example",
            b"127.0.0.1.evil.example",
            b"localhost:x",
            b"127.0.0.1:8000:1",
            b"::1",
        ],
    )
    def test_any_other_name_is_refused(self, host: bytes):
        with pytest.raises(RequestError) as caught:
            http.check_host([(b"host", host)])
        assert caught.value.status == 421

    @pytest.mark.parametrize(
        "origin", [b"https://evil.example", b"null", b"http://127.0.0.1.evil.example", b""]
    )
    def test_a_page_of_another_server_is_refused(self, origin: bytes):
        with pytest.raises(RequestError) as caught:
            http.check_host([LOOPBACK, (b"origin", origin)])
        assert (caught.value.status, caught.value.code) == (403, "wrong_origin")

    def test_a_page_of_this_machine_is_taken(self):
        http.check_host([LOOPBACK, (b"origin", b"http://localhost:8000")])

    def test_names_of_ours_are_taken_too_and_no_others(self):
        try:
            http.answer_to(("models.example", "10.0.0.5", "[fe80::1]"))
            for host in (b"models.example:8443", b"MODELS.example", b"10.0.0.5", b"[fe80::1]:8443"):
                http.check_host([(b"host", host)])
            http.check_host([LOOPBACK, (b"origin", b"https://models.example:8443")])
            for host in (b"models.example.evil", b"xmodels.example", b"10.0.0.51", b"fe80::1"):
                with pytest.raises(RequestError):
                    http.check_host([(b"host", host)])
        finally:
            http.answer_to(())
        with pytest.raises(RequestError):
            http.check_host([(b"host", b"models.example")])
        http.check_host([LOOPBACK])

    def test_no_host_and_two_hosts_are_refused(self):
        for headers in ([], [LOOPBACK, (b"host", b"evil.example")]):
            with pytest.raises(RequestError):
                http.check_host(headers)


class TestContentType:
    @pytest.mark.parametrize(
        "given",
        [b"application/json", b"Application/JSON", b'application/json; charset="UTF-8"'],
    )
    def test_json_in_utf8_is_taken(self, given: bytes):
        http.check_json([(b"content-type", given)])

    @pytest.mark.parametrize(
        "headers",
        [
            [],
            [(b"content-type", b"text/plain")],
            [(b"content-type", b"application/json; charset=latin-1")],
            [(b"content-type", b"application/jsonp")],
            [(b"content-type", b"application/json"), (b"content-encoding", b"gzip")],
        ],
    )
    def test_all_else_is_415(self, headers: http.Headers):
        with pytest.raises(RequestError) as caught:
            http.check_json(headers)
        assert caught.value.status == 415


class TestBody:
    def test_pieces_are_put_together(self):
        assert read(Body(b"abc", b"", b"def")) == b"abcdef"

    def test_exactly_the_limit_is_taken(self):
        assert read(Body(b"12345", b"67890")) == b"1234567890"

    def test_a_declared_length_beyond_the_limit_is_refused_and_the_body_read_away(self):
        body = Body(b"12345", b"67890", b"1")
        with pytest.raises(RequestError) as caught:
            read(body, (b"content-length", b"11"))
        assert caught.value.status == 413
        assert body.num_reads == 3

    def test_a_longer_body_without_a_length_is_refused_too(self):
        body = Body(b"12345", b"678901", b"2")
        with pytest.raises(RequestError) as caught:
            read(body)
        assert caught.value.status == 413
        assert body.num_reads == 3

    def test_a_client_that_leaves_in_the_middle_is_an_answerable_error(self):
        async def leaves() -> dict[str, Any]:
            return {"type": "http.disconnect"}

        with pytest.raises(RequestError) as caught:
            asyncio.run(http.read_body([], leaves, max_bytes=10))
        assert caught.value.status == 400


class TestAnswers:
    def test_an_error_says_code_message_and_path(self):
        answer = http.error_answer(RequestError(422, "wrong_type", "ä \ud800", path="$.rows"))
        assert json.loads(answer.body) == {
            "code": "wrong_type",
            "message": "ä \ud800",
            "path": "$.rows",
        }

    def test_a_503_says_when_to_try_again(self):
        answer = http.error_answer(RequestError(503, "overloaded", "full"))
        assert (b"retry-after", b"1") in answer.headers

    def test_a_405_says_what_is_allowed(self):
        assert (b"allow", b"GET, HEAD") in http.method_answer("PUT", "GET", "HEAD").headers

    def test_a_handler_that_fails_is_a_logged_503_and_no_dead_connection(self, caplog):
        async def fails(scope: http.Scope, receive: http.Receive) -> http.Answer:
            raise ZeroDivisionError

        scope = {"path": "/x", "headers": [LOOPBACK]}
        answer = asyncio.run(http.answer_safely(fails, scope, Body()))
        assert answer.status == 503
        assert json.loads(answer.body)["code"] == "internal"
        assert "ZeroDivisionError" in caplog.text

    def test_another_host_never_reaches_the_handler(self):
        async def must_not_run(scope: http.Scope, receive: http.Receive) -> http.Answer:
            pytest.fail("the handler ran")

        scope = {"path": "/x", "headers": [(b"host", b"evil.example")]}
        assert asyncio.run(http.answer_safely(must_not_run, scope, Body())).status == 421

    def test_uvicorn_takes_the_application_for_asgi_3(self):
        from uvicorn import Config

        async def handle(scope: http.Scope, receive: http.Receive, send: http.Send) -> None: ...

        config = Config(http.AsgiApp(handle), log_config=None)
        config.load()
        assert config.interface == "asgi3"


class TestOneWrite:
    """uvicorn itself, on a loop of its own: the answer leaves in one piece and is whole."""

    def test_head_and_body_leave_together_and_the_connection_is_whole_after_it(self):
        from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

        class Wire:
            def __init__(self):
                self.writes: list[bytes] = []
                self.closed = False

            def write(self, data: bytes) -> None:
                self.writes.append(data)

            def close(self) -> None:
                self.closed = True

        async def answer(keep_alive: bool) -> tuple[Wire, RequestResponseCycle]:
            wire = Wire()
            cycle = RequestResponseCycle.__new__(RequestResponseCycle)
            vars(cycle).update(
                scope={"method": "POST", "type": "http"},
                transport=wire,
                flow=type("Flow", (), {"write_paused": False})(),
                disconnected=False,
                response_started=False,
                response_complete=False,
                waiting_for_100_continue=False,
                access_log=False,
                default_headers=[],
                chunked_encoding=None,
                expected_content_length=0,
                keep_alive=keep_alive,
                message_event=asyncio.Event(),
                on_response=lambda: None,
            )
            done = http.Answer(status=200, body=b'{"a":1}')
            await http.send_answer(cycle.send, done, cycle.receive)
            return wire, cycle

        for keep_alive in (True, False):
            wire, cycle = asyncio.run(answer(keep_alive))
            (sent,) = wire.writes
            assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
            assert sent.endswith(b'\r\n\r\n{"a":1}')
            assert cycle.transport is wire
            assert wire.closed is not keep_alive
