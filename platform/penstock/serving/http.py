"""What every served route shares: who may ask, how a body is read, how an answer is written.

Plain ASGI, with no framework on the hot route: a framework's routing and validation cost more here
than the prediction itself.
"""

import json
import logging
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.errors import RequestError
from penstock.serving.requests import too_large

Scope = Mapping[str, Any]
Receive = Callable[[], Awaitable[Mapping[str, Any]]]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Headers = Sequence[tuple[bytes, bytes]]

ROOT_APP = "penstock"
"""The Serve application at `/`; a model must not take its name."""
MODEL_PREFIX = "/v1/models/"
NOT_LOADED = "not_loaded"
"""The code of a refusal where a shared replica cannot load what it should answer with."""
# The ingress leads /v2/models/<model>/… to the model's own prefix.
_OPEN_INFERENCE = re.compile(r"/v2(/|$)|/v1/models/[^/]+/v2(/|$)")
_LOOPBACK_NAMES = (b"127.0.0.1", b"localhost", b"[::1]")
_names = set(_LOOPBACK_NAMES)
# A refused body is read to its end, up to here, so that the client gets to read the answer.
_MAX_DRAINED_BYTES = 64 << 20
_MAX_REQUEST_ID_BYTES = 200
_MAX_TIMEOUT_MS = 3_600_000

logger = logging.getLogger("ray.serve")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A finished answer."""

    status: int
    body: bytes
    content_type: bytes = b"application/json"
    headers: tuple[tuple[bytes, bytes], ...] = ()
    metrics: Any = None
    """The `RequestMetrics` that count it, where those are not the replica's first version's."""


def error_answer(
    error: RequestError, headers: tuple[tuple[bytes, bytes], ...] = (), *, asked: str = ""
) -> Answer:
    """Write a refusal as `{code, message, path}`; ASCII, so any text of the caller's can stand.

    Who asks at a path of the Open Inference Protocol finds the message as `error`, too.
    """
    if error.status in (429, 503) and not any(name == b"retry-after" for name, _ in headers):
        headers = (*headers, (b"retry-after", b"%d" % error.retry_after_s))
    if error.status == 401:
        headers = (*headers, (b"www-authenticate", b'Bearer realm="penstock"'))
    parts = {"code": error.code, "message": error.message, "path": error.path}
    if _OPEN_INFERENCE.match(asked):
        parts["error"] = error.message
    return Answer(status=error.status, body=json.dumps(parts).encode("ascii"), headers=headers)


def method_answer(method: str, *allowed: str) -> Answer:
    """Refuse a method that the path does not know."""
    listed = ", ".join(allowed)
    error = RequestError(
        405, "method_not_allowed", f"{method} is not allowed here; use {listed}", path="$"
    )
    return error_answer(error, ((b"allow", listed.encode()),))


def unknown_path(path: str) -> RequestError:
    """Build the refusal of a path that nothing answers."""
    return RequestError(404, "unknown_path", f"nothing is served at {path[:200]!a}")


def unknown_model(model: str) -> RequestError:
    """Build the refusal of a model that nobody serves."""
    return RequestError(404, "unknown_model", f"no model named {model[:100]!a} is served")


def only_header(headers: Headers, name: bytes) -> bytes | None:
    """Give the header's value; None where it is absent or stands more than once."""
    found = [value for key, value in headers if key == name]
    return found[0] if len(found) == 1 else None


def answer_to(names: Sequence[str]) -> None:
    """Take requests to these names too, in this process, beside those of loopback."""
    _names.clear()
    _names.update(_LOOPBACK_NAMES, (name.encode() for name in names))


def request_id(headers: Headers) -> bytes:
    """Give the caller's name for its request; empty: it has none.

    Raises:
        RequestError: it is too long.
    """
    given = next((value for key, value in headers if key == b"x-request-id"), b"")
    if len(given) > _MAX_REQUEST_ID_BYTES:
        raise RequestError(
            422, "bad_request_id", f"X-Request-Id has over {_MAX_REQUEST_ID_BYTES} bytes"
        )
    return given


def timeout_s(headers: Headers) -> float | None:
    """Read how long the caller waits for an answer; None: it does not say.

    Raises:
        RequestError: that is no time.
    """
    given = next((value for key, value in headers if key == b"x-timeout-ms"), None)
    if given is None:
        return None
    if not (given.isdigit() and 0 < int(given[:8]) <= _MAX_TIMEOUT_MS):
        raise RequestError(
            422,
            "bad_timeout",
            f"X-Timeout-Ms is a whole number of milliseconds up to {_MAX_TIMEOUT_MS:,}",
        )
    return int(given) / 1000


def check_host(headers: Headers) -> None:
    """Refuse requests that were sent to a name that is not ours, or from a page of another one.

    A web page whose name resolves to 127.0.0.1 (DNS rebinding) must not reach the models; nor must
    one that sends a request whose answer it may not read.

    Raises:
        RequestError: 421 for the name, 403 for the page.
    """
    if not _is_ours(only_header(headers, b"host") or b""):
        raise RequestError(
            421,
            "wrong_host",
            "this server answers only to 127.0.0.1, localhost, [::1] and serving.public_names",
        )
    for name, value in headers:
        if name == b"origin" and not _is_ours(value.rpartition(b"://")[2]):
            raise RequestError(403, "wrong_origin", "this server answers no pages of other servers")


def _is_ours(host: bytes) -> bool:
    name, _, port = host.rpartition(b":") if not host.endswith(b"]") else (host, b"", b"")
    if not name:
        name, port = host, b""
    return name.lower() in _names and (not port or port.isdigit())


def check_json(headers: Headers, *kinds: bytes) -> bytes:
    """Refuse a body that is not declared as plain JSON, or as one of these kinds.

    Raises:
        RequestError: 415.
    """
    allowed = (b"application/json", *kinds)
    content_type = only_header(headers, b"content-type") or b""
    kind = content_type
    if kind not in allowed:
        kind, _, parameter = content_type.lower().partition(b";")
        kind = kind.strip()
        charset = parameter.strip().replace(b'"', b"")
        if kind not in allowed or charset not in (b"", b"charset=utf-8"):
            listed = " or ".join(name.decode() for name in allowed if name)
            raise RequestError(415, "wrong_content_type", f"send Content-Type: {listed}, in UTF-8")
    encoding = only_header(headers, b"content-encoding")
    if encoding is not None and encoding.strip().lower() != b"identity":
        raise RequestError(415, "wrong_content_encoding", "send the body uncompressed")
    return kind


async def read_body(headers: Headers, receive: Receive, *, max_bytes: int) -> bytes:
    """Collect the body, in memory only up to `max_bytes`.

    Raises:
        RequestError: 413 where it is longer; 400 where the client left before its end.
    """
    declared = only_header(headers, b"content-length")
    if declared is not None and declared.isdigit() and int(declared) > max_bytes:
        await drain(receive)
        raise too_large(max_bytes)
    chunks: list[bytes] = []
    num_bytes = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise RequestError(400, "unreadable", "the body ended too early")
        chunk = message.get("body", b"")
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            if message.get("more_body", False):
                await drain(receive)
            raise too_large(max_bytes)
        chunks.append(chunk)
        if not message.get("more_body", False):
            return chunks[0] if len(chunks) == 1 else b"".join(chunks)


async def drain(receive: Receive) -> None:
    """Read what is left of a body and forget it."""
    num_bytes = 0
    while num_bytes <= _MAX_DRAINED_BYTES:
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if message["type"] != "http.request" or not message.get("more_body", False):
            return


class _OneWrite:
    """Stands in for a connection while an answer is written: head and body leave together."""

    def __init__(self, transport: Any) -> None:
        self._transport = transport
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        self._parts.append(data)

    def flush(self) -> None:
        if self._parts:
            self._transport.write(b"".join(self._parts))
            self._parts.clear()

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


async def send_answer(send: Send, answer: Answer, receive: Receive | None = None) -> None:
    """Write the answer out.

    Args:
        send: ASGI's.
        answer: what to write.
        receive: ASGI's. uvicorn's leads to the connection: uvicorn writes head and body one by one,
            and each write wakes HAProxy, which costs more than making the answer.
    """
    cycle = getattr(receive, "__self__", None)
    transport = getattr(cycle, "transport", None)
    if transport is None:
        await _send_parts(send, answer)
        return
    together = _OneWrite(transport)
    cycle.transport = together  # type: ignore[union-attr]  # a cycle with a transport is no None
    try:
        await _send_parts(send, answer)
    finally:
        cycle.transport = transport  # type: ignore[union-attr]  # the same
        together.flush()


async def _send_parts(send: Send, answer: Answer) -> None:
    await send(
        {
            "type": "http.response.start",
            "status": answer.status,
            "headers": [
                (b"content-type", answer.content_type),
                (b"content-length", b"%d" % len(answer.body)),
                *answer.headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": answer.body})


class AsgiApp:
    """A handler in the shape that Serve looks for: uvicorn takes a bound method for ASGI 2."""

    def __init__(self, handle: Callable[[Scope, Receive, Send], Awaitable[None]]) -> None:
        """Wrap the handler of all requests."""
        self._handle = handle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or take part in start and stop, where the work is a constructor's."""
        if scope["type"] == "lifespan":
            await _run_lifespan(receive, send)
        else:
            await self._handle(scope, receive, send)


async def _run_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            await send({"type": "lifespan.startup.complete"})
        elif message["type"] == "lifespan.shutdown":
            await send({"type": "lifespan.shutdown.complete"})
            return


async def answer_safely(
    handle: Callable[[Scope, Receive], Awaitable[Answer]], scope: Scope, receive: Receive
) -> Answer:
    """Run a handler so that whatever happens ends in an answer, never in a dead connection."""
    try:
        check_host(scope["headers"])
        return await handle(scope, receive)
    except RequestError as error:
        return error_answer(error, asked=scope["path"])
    except Exception:
        logger.exception("a request failed in %s", scope.get("path"))
        fault = RequestError(503, "internal", "the server failed on this request; it is logged")
        return error_answer(fault, asked=scope["path"])
