"""The gateway before a small HTTP server, whose every request is looked at."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import orjson
import pytest
from aiohttp import web
from tritonclient.grpc import service_pb2
from yarl import URL

from penstock.errors import ClusterError
from penstock.serving.grpc_gateway import Gateway

MAX_BYTES = 4096
LENGTH = "Inference-Header-Content-Length"


class Ingress:
    """Takes requests down, and answers as it is told."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.answer: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.infer
        self.may_answer = asyncio.Event()
        self.may_answer.set()

    async def infer(self, _request: web.Request) -> web.Response:
        head = orjson.dumps({"model_name": "river", "model_version": "3", "outputs": []})
        return web.Response(body=head, headers={LENGTH: str(len(head))})

    async def handle(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.requests.append((request.method, request.raw_path, headers))
        await self.may_answer.wait()
        return await self.answer(request)


def refuse(status: int, message: str, **headers: str) -> Any:
    async def answer(_request: web.Request) -> web.Response:
        body = {"code": "no", "message": message, "path": "$"}
        return web.json_response(body, status=status, headers=headers)

    return answer


class Running:
    """A gateway with its ingress, and a client."""

    def __init__(self) -> None:
        self.ingress = Ingress()

    async def __aenter__(self) -> "Running":
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self.ingress.handle)
        # So that a request in hand does not hold up the end of the test.
        self.runner = web.AppRunner(app, shutdown_timeout=0.1)
        await self.runner.setup()
        site = web.TCPSite(self.runner, "127.0.0.1", 0)
        await site.start()
        self.url = str(URL.build(scheme="http", host="127.0.0.1", port=self.runner.addresses[0][1]))
        self.gateway = Gateway(self.url, max_body_bytes=MAX_BYTES)
        self.port = await self.gateway.start(0)
        self.channel = grpc.aio.insecure_channel(f"127.0.0.1:{self.port}")
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self.channel.close()
        await self.gateway.stop(0)
        await self.runner.cleanup()

    def call(self, method: str, message: bytes = b"", **options: Any) -> Any:
        service = "grpc.health.v1.Health" if method == "Check" else "inference.GRPCInferenceService"
        return self.channel.unary_unary(f"/{service}/{method}")(message, **options)

    async def refused(self, *arguments: Any, **options: Any) -> grpc.aio.AioRpcError:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await self.call(*arguments, **options)
        return caught.value


def run(work: Callable[[Running], Awaitable[None]]) -> None:
    async def whole() -> None:
        async with Running() as running:
            await work(running)

    asyncio.run(asyncio.wait_for(whole(), timeout=60))


INFER = service_pb2.ModelInferRequest(model_name="river", id="7").SerializeToString()


class TestWhatGoesOn:
    def test_a_key_and_an_id_and_a_deadline(self):
        async def work(running: Running) -> None:
            metadata = (
                ("authorization", "Bearer a.b"),
                ("x-api-key", "a.b"),
                ("x-request-id", "mine"),
                ("host", "example.com"),
                ("cookie", "c=1"),
            )
            await running.call("ModelInfer", INFER, metadata=metadata, timeout=50)
            ((method, path, headers),) = running.ingress.requests
            assert (method, path) == ("POST", "/v2/models/river/infer")
            assert headers["authorization"] == "Bearer a.b"
            assert headers["x-api-key"] == "a.b"
            assert headers["x-request-id"] == "mine"
            assert 0 < int(headers["x-timeout-ms"]) <= 50_000
            assert headers["host"].startswith("127.0.0.1:")
            assert "cookie" not in headers

        run(work)

    def test_no_deadline_is_none_and_each_call_has_an_id_of_its_own(self):
        async def work(running: Running) -> None:
            await running.call("ModelInfer", INFER)
            await running.call("ModelInfer", INFER)
            headers = [headers for _, _, headers in running.ingress.requests]
            assert "x-timeout-ms" not in headers[0]
            assert headers[0]["x-request-id"] != headers[1]["x-request-id"]

        run(work)

    def test_a_name_is_not_followed(self):
        async def work(running: Running) -> None:
            for name in ("..", "../../healthz", "a/b", "a?b#c"):
                message = service_pb2.ModelInferRequest(model_name=name).SerializeToString()
                await running.call("ModelInfer", message)
            assert [path for _, path, _ in running.ingress.requests] == [
                "/v2/models/../infer",
                "/v2/models/..%2F..%2Fhealthz/infer",
                "/v2/models/a%2Fb/infer",
                "/v2/models/a%3Fb%23c/infer",
            ]

        run(work)


class TestRefusals:
    def test_what_the_ingress_says_reaches_the_caller(self):
        async def work(running: Running) -> None:
            running.ingress.answer = refuse(429, "slowly", **{"Retry-After": "3"})
            error = await running.refused("ModelInfer", INFER)
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert error.details() == "slowly"
            assert dict(error.trailing_metadata())["retry-after"] == "3"

        run(work)

    def test_a_message_that_is_none_is_the_callers(self):
        async def work(running: Running) -> None:
            error = await running.refused("ModelInfer", b"\xff\xff")
            assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
            assert error.details() == "this is no ModelInferRequest"
            assert running.ingress.requests == []

        run(work)

    def test_a_message_too_large_goes_nowhere(self):
        async def work(running: Running) -> None:
            error = await running.refused("ModelInfer", bytes(MAX_BYTES + 1))
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED

        run(work)

    def test_a_message_that_unpacks_to_more_goes_nowhere(self):
        async def work(running: Running) -> None:
            bomb = b"\x12\x80\x80\x80\x01" + bytes(2 << 20)
            error = await running.refused(
                "ModelInfer", bomb, compression=grpc.Compression.Gzip, timeout=20
            )
            assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert "Decompressed" in error.details()
            assert running.ingress.requests == []

        run(work)

    def test_a_method_that_is_not_spoken(self):
        async def work(running: Running) -> None:
            error = await running.refused("RepositoryIndex")
            assert error.code() is grpc.StatusCode.UNIMPLEMENTED

        run(work)

    def test_a_fault_of_ours_shows_nothing_of_us(self):
        async def work(running: Running) -> None:
            async def answer(_request: web.Request) -> web.Response:
                return web.Response(body=b"secret", headers={LENGTH: "3"})

            running.ingress.answer = answer
            error = await running.refused("ModelInfer", INFER)
            assert error.code() is grpc.StatusCode.INTERNAL
            assert error.details() == "the server failed on this request; it is logged"

        run(work)

    def test_an_ingress_that_is_gone_is_unavailable(self):
        async def work(running: Running) -> None:
            await running.runner.cleanup()
            error = await running.refused("ModelInfer", INFER)
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert error.details() == "the ingress does not answer; try again"

        run(work)

    def test_a_connection_that_breaks_is_tried_once_more_under_the_same_id(self):
        async def work(running: Running) -> None:
            async def hang_up(request: web.Request) -> web.Response:
                assert request.transport is not None
                request.transport.close()
                running.ingress.answer = running.ingress.infer
                return web.Response()

            running.ingress.answer = hang_up
            await running.call("ModelInfer", INFER)
            ids = [headers["x-request-id"] for _, _, headers in running.ingress.requests]
            assert len(ids) == 2
            assert ids[0] == ids[1]

        run(work)


class TestHealth:
    @pytest.mark.parametrize(("status", "found"), [(200, b"\x08\x01"), (503, b"\x08\x02")])
    def test_health_is_readiness(self, status: int, found: bytes):
        async def work(running: Running) -> None:
            running.ingress.answer = refuse(status, "no model is deployed")
            assert await running.call("Check") == found
            ready = service_pb2.ServerReadyResponse(ready=status == 200).SerializeToString()
            assert await running.call("ServerReady") == ready
            assert {path for _, path, _ in running.ingress.requests} == {"/v2/health/ready"}

        run(work)

    def test_a_service_that_is_not_here(self):
        async def work(running: Running) -> None:
            error = await running.refused("Check", b"\x0a\x01x")
            assert error.code() is grpc.StatusCode.NOT_FOUND

        run(work)

    def test_without_a_key_neither_answers(self):
        async def work(running: Running) -> None:
            running.ingress.answer = refuse(401, "send a valid key")
            for method in ("Check", "ServerReady", "ServerLive", "ModelReady"):
                error = await running.refused(method)
                assert error.code() is grpc.StatusCode.UNAUTHENTICATED

        run(work)


class TestLife:
    def test_a_new_one_begins_before_the_old_one_ends_which_answers_what_it_has_in_hand(self):
        async def work(running: Running) -> None:
            running.ingress.may_answer.clear()
            in_hand = asyncio.ensure_future(running.call("ModelInfer", INFER))
            while not running.ingress.requests:
                await asyncio.sleep(0.01)
            new = Gateway(running.url, max_body_bytes=MAX_BYTES)
            assert await new.start(running.port) == running.port
            stopping = asyncio.ensure_future(running.gateway.stop(30))
            # Until the client has heard of it: what reaches gRPC's server in that moment is cancelled.
            await asyncio.sleep(0.5)
            later = asyncio.ensure_future(running.call("ModelInfer", INFER, wait_for_ready=True))
            while len(running.ingress.requests) < 2:
                assert not later.done(), later
                await asyncio.sleep(0.01)
            assert not in_hand.done()
            running.ingress.may_answer.set()
            assert await in_hand == await later
            await stopping
            await new.stop(0)

        run(work)

    def test_a_port_that_somebody_else_has_is_told(self):
        async def work() -> None:
            with socket.socket() as taken:
                taken.bind(("127.0.0.1", 0))
                taken.listen()
                gateway = Gateway("http://127.0.0.1:9", max_body_bytes=MAX_BYTES)
                try:
                    with pytest.raises(ClusterError, match="gRPC cannot listen on 127"):
                        await gateway.start(taken.getsockname()[1])
                finally:
                    await gateway.stop(0)

        asyncio.run(work())
