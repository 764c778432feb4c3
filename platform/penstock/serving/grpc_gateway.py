"""Open Inference over gRPC: each call goes on over HTTP to the ingress of this machine.

So keys, limits, batches, rollouts, retries and logs are those of HTTP. Listens on loopback alone.
"""

import logging
import uuid
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any

import grpc
from google.protobuf.message import DecodeError

from penstock.cluster.ingress import grpc_port
from penstock.errors import ClusterError, RequestError
from penstock.serving.grpc_messages import (
    HEALTH_SERVICE,
    NOT_SERVING,
    SERVICE,
    SERVING,
    messages,
)
from penstock.serving.grpc_tensors import (
    infer_body,
    infer_response,
    model_metadata,
    model_path,
    refusal,
)
from penstock.settings import load_settings

_HOST = "127.0.0.1"
_PASSED_ON = ("authorization", "x-api-key", "x-request-id")
_LENGTH_HEADER = "Inference-Header-Content-Length"
_MAX_CALLS_AT_ONCE = 1024
"""Each may hold a message; what a model takes at once is the replica's to say."""
_MAX_TIMEOUT_MS = 3_600_000
_CONNECT_TIMEOUT_S = 5.0
# Shorter than the ingress keeps a connection that nobody uses.
_KEEPALIVE_S = 15.0
_DRAIN_S = 8.0

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class _Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes


class _RefusedError(Exception):
    """The ingress refuses."""

    def __init__(self, answer: _Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


_Handler = Callable[[Any, "_Call"], Awaitable[Any]]


class Gateway:
    """A gRPC server before an HTTP server."""

    def __init__(self, url: str, *, max_body_bytes: int) -> None:
        """Prepare; `start` listens.

        Args:
            url: of the ingress.
            max_body_bytes: of a message; the ingress takes no larger body either.
        """
        self._url = url
        self._max_body_bytes = max_body_bytes
        self._server: Any = None
        self._session: Any = None

    async def start(self, port: int) -> int:
        """Listen on loopback; give the port, which is a free one where 0 is asked for.

        Another gateway of the same user may listen on the port, too: a new one begins before the
        old one ends.

        Raises:
            ClusterError: somebody else listens there.
        """
        import aiohttp

        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEPALIVE_S),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_TIMEOUT_S),
            auto_decompress=False,
            # Cookies are no part of the protocol, and one caller's must not reach the next.
            cookie_jar=aiohttp.DummyCookieJar(),
        )
        self._server = grpc.aio.server(
            options=(
                ("grpc.so_reuseport", 1),
                # gRPC holds to it while it unpacks a compressed message, too.
                ("grpc.max_receive_message_length", self._max_body_bytes),
            ),
            maximum_concurrent_rpcs=_MAX_CALLS_AT_ONCE,
        )
        inference = {
            "ServerLive": _server_live,
            "ServerReady": _server_ready,
            "ModelReady": _model_ready,
            "ServerMetadata": _server_metadata,
            "ModelMetadata": _model_metadata,
            "ModelInfer": _model_infer,
        }
        services = {
            SERVICE: {
                name: self._method(f"{name}Request", handle) for name, handle in inference.items()
            },
            HEALTH_SERVICE: {"Check": self._method("HealthCheckRequest", _check_health)},
        }
        self._server.add_generic_rpc_handlers(
            [grpc.method_handlers_generic_handler(*service) for service in services.items()]
        )
        try:
            listening: int = self._server.add_insecure_port(f"{_HOST}:{port}")
        except RuntimeError:
            raise ClusterError(
                f"gRPC cannot listen on {_HOST}:{port}",
                next_step="end what listens there, or set serving.port to another one",
            ) from None
        await self._server.start()
        return listening

    async def stop(self, drain_s: float = _DRAIN_S) -> None:
        """Take no more calls, and give those under way their time to end."""
        if self._server is not None:
            await self._server.stop(drain_s)
        if self._session is not None:
            await self._session.close()

    def _method(self, request_name: str, handle: _Handler) -> grpc.RpcMethodHandler:
        async def answer(message: bytes, context: Any) -> bytes:
            code, words, retry_after = grpc.StatusCode.INTERNAL, "", None
            try:
                request = messages()[request_name].FromString(message)
                response = await handle(request, _Call(self._session, self._url, context))
                return bytes(response.SerializeToString())
            except DecodeError:
                code, words = grpc.StatusCode.INVALID_ARGUMENT, f"this is no {request_name}"
            except RequestError as error:
                code, words = _explained(error)
            except _RefusedError as error:
                code, words = refusal(error.answer.status, error.answer.body)
                retry_after = error.answer.headers.get("Retry-After")
            except OSError:
                code, words = grpc.StatusCode.UNAVAILABLE, "the ingress does not answer; try again"
            except Exception:
                logger.exception("a %s failed", request_name)
                words = "the server failed on this request; it is logged"
            trailers = () if retry_after is None else (("retry-after", retry_after),)
            await context.abort(code, words, trailers)
            raise AssertionError  # abort has raised

        # Read here and not by gRPC, which calls a message that it can't read its own fault.
        return grpc.unary_unary_rpc_method_handler(answer)


class _Call:
    """One call: what of it goes on to the ingress."""

    def __init__(self, session: Any, url: str, context: Any) -> None:
        self._session = session
        self._url = url
        metadata = context.invocation_metadata() or ()
        self._headers = [(name, value) for name, value in metadata if name in _PASSED_ON]
        if not any(name == "x-request-id" for name, _ in self._headers):
            # The same for both tries, so that the second one is no second prediction.
            self._headers.append(("x-request-id", uuid.uuid4().hex))
        remaining_s = context.time_remaining()
        if remaining_s is not None:
            remaining_ms = int(remaining_s * 1000)
            if remaining_ms <= _MAX_TIMEOUT_MS:
                self._headers.append(("x-timeout-ms", str(max(remaining_ms, 1))))

    async def get(self, path: str, *, also: tuple[int, ...] = ()) -> _Answer:
        """Ask for a page; statuses of `also` are no refusals."""
        return await self._ask("GET", path, also=also)

    async def post(self, path: str, body: bytes, headers: Mapping[str, str]) -> _Answer:
        """Send a body."""
        return await self._ask("POST", path, body=body, headers=headers)

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        also: tuple[int, ...] = (),
    ) -> _Answer:
        sent = [*self._headers, *(headers or {}).items()]
        try:
            answer = await self._once(method, path, body, sent)
        except ConnectionError:
            # A kept connection that the ingress closed at this moment, or an ingress that went.
            answer = await self._once(method, path, body, sent)
        if answer.status != 200 and answer.status not in also:
            raise _RefusedError(answer)
        return answer

    async def _once(
        self, method: str, path: str, body: bytes | None, headers: list[tuple[str, str]]
    ) -> _Answer:
        import aiohttp
        from yarl import URL

        try:
            # Whole and encoded: of a relative one, `..` in a model's name would be followed.
            url = URL(self._url + path, encoded=True)
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as answer:
                return _Answer(
                    status=answer.status, headers=answer.headers, body=await answer.read()
                )
        except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError) as error:
            raise ConnectionError(str(error)) from None
        except aiohttp.ClientError as error:
            raise OSError(str(error)) from None


async def _server_live(_request: Any, call: _Call) -> Any:
    await call.get("/v2/health/live")
    return messages()["ServerLiveResponse"](live=True)


async def _server_ready(_request: Any, call: _Call) -> Any:
    answer = await call.get("/v2/health/ready", also=(503,))
    return messages()["ServerReadyResponse"](ready=answer.status == 200)


async def _model_ready(request: Any, call: _Call) -> Any:
    path = model_path(request.name, request.version, "/ready")
    answer = await call.get(path, also=(404, 503))
    return messages()["ModelReadyResponse"](ready=answer.status == 200)


async def _server_metadata(_request: Any, call: _Call) -> Any:
    import orjson

    document = orjson.loads((await call.get("/v2")).body)
    known = {key: document[key] for key in ("name", "version", "extensions")}
    return messages()["ServerMetadataResponse"](**known)


async def _model_metadata(request: Any, call: _Call) -> Any:
    return model_metadata((await call.get(model_path(request.name, request.version))).body)


async def _model_infer(request: Any, call: _Call) -> Any:
    body, num_head_bytes = infer_body(request)
    headers = {"Content-Type": "application/octet-stream", _LENGTH_HEADER: str(num_head_bytes)}
    path = model_path(request.model_name, request.model_version, "/infer")
    answer = await call.post(path, body, headers)
    return infer_response(
        answer.body, int(answer.headers[_LENGTH_HEADER]), raw=bool(request.raw_input_contents)
    )


async def _check_health(request: Any, call: _Call) -> Any:
    if request.service not in ("", SERVICE):
        raise RequestError(404, "unknown_path", f"no service {request.service[:100]!a} is here")
    answer = await call.get("/v2/health/ready", also=(503,))
    status = SERVING if answer.status == 200 else NOT_SERVING
    return messages()["HealthCheckResponse"](status=status)


def _explained(error: RequestError) -> tuple[grpc.StatusCode, str]:
    import orjson

    return refusal(error.status, orjson.dumps({"message": error.message, "path": error.path}))


class GrpcDeployment:
    """The gateway as a deployment of Serve, which starts it again where it was killed."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Serve awaits it: gRPC needs its loop
        """Listen where the settings say."""
        settings = load_settings()
        self._gateway = Gateway(
            f"http://{_HOST}:{settings.serving.port}",
            max_body_bytes=settings.serving.max_body_bytes,
        )
        await self._gateway.start(grpc_port(settings.serving.port))

    async def __del__(self) -> None:
        """Drain; Serve awaits it before it ends a replica."""
        await self._gateway.stop()
