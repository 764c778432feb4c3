"""The route that takes pushed events: `POST /v1/tables/<table>/events`.

An event is durable before it is answered. A stream moves it into its table and online within a
second of that, or when it is started next.
"""

import asyncio
import threading
from collections.abc import Sequence
from hashlib import blake2b

import orjson

from penstock.data.contracts import Table, get_table
from penstock.data.events import Push
from penstock.data.events.push_log import Full, Pushed, PushLog
from penstock.errors import NotFoundError, PenstockError, RequestError
from penstock.features.stream_declarations import load_streams
from penstock.serving import http
from penstock.serving.batching import Batcher
from penstock.serving.event_bodies import LINES, read_events
from penstock.settings import Settings

PREFIX = "/v1/tables/"
_SUFFIX = "/events"
_MAX_REQUESTS = 64
_BODIES_PER_COMMIT = 64
_MAX_KEY_BYTES = 200
_RETRY_WHEN_FULL_S = b"30"


def table_of(path: str) -> str | None:
    """Give the table that a path's events are for; None: the path is another's."""
    name = path.removeprefix(PREFIX).removesuffix(_SUFFIX)
    return name if path == f"{PREFIX}{name}{_SUFFIX}" and name and "/" not in name else None


class EventIntake:
    """Checks bodies of events and appends them to the log of pushed events."""

    def __init__(self, settings: Settings) -> None:
        """Prepare; declarations and the log are opened by the first event."""
        self._settings = settings
        self._tables: dict[str, Table] = {}
        self._log: PushLog | None = None
        self._loading = threading.Lock()
        self._num_requests = 0
        # One commit for all that wait: a disk takes a few hundred commits a second.
        self._batcher = Batcher(self._append, max_batch_size=_BODIES_PER_COMMIT, wait_s=0.0)

    async def answer(self, name: str, scope: http.Scope, receive: http.Receive) -> http.Answer:
        """Answer a request for a table's events."""
        if scope["method"] != "POST":
            return http.method_answer(scope["method"], "POST")
        if self._num_requests >= _MAX_REQUESTS:
            raise RequestError(503, "overloaded", f"{self._num_requests} requests are in flight")
        self._num_requests += 1
        try:
            return await self._take(name, scope["headers"], receive)
        finally:
            self._num_requests -= 1

    async def _take(self, name: str, headers: http.Headers, receive: http.Receive) -> http.Answer:
        kind = http.check_json(headers, *LINES)
        max_bytes = self._settings.serving.max_body_bytes
        body = await http.read_body(headers, receive, max_bytes=max_bytes)
        key = http.only_header(headers, b"idempotency-key") or b""
        if len(key) > _MAX_KEY_BYTES:
            raise RequestError(422, "bad_key", f"Idempotency-Key has over {_MAX_KEY_BYTES} bytes")
        # Large bodies take a while to read, and the server has others to answer.
        pushed = await asyncio.to_thread(self._read, name, body, key, kind in LINES)
        written = await self._batcher.submit(pushed)
        if isinstance(written, Full):
            full = RequestError(
                503,
                "full",
                f"{written.num_waiting:,} events of {name} wait for a stream: "
                f"`penstock features stream` moves them on",
            )
            return http.error_answer(full, ((b"retry-after", _RETRY_WHEN_FULL_S),))
        receipt = {"table": name, "accepted": len(pushed.events), "sequence": written}
        return http.Answer(status=202, body=orjson.dumps(receipt))

    def _read(self, name: str, body: bytes, key: bytes, is_lines: bool) -> Pushed:
        table = self._table(name)
        events = read_events(body, table, is_lines=is_lines)
        identity = blake2b(b"%d:" % len(key) + key, digest_size=16)
        identity.update(body)
        return Pushed(name, events, identity.digest())

    def _table(self, name: str) -> Table:
        with self._loading:
            if name not in self._tables:
                self._tables[name] = _find_table(self._settings, name)
            return self._tables[name]

    async def _append(self, bodies: Sequence[Pushed]) -> list[int | Full]:
        return await asyncio.to_thread(self._append_now, bodies)

    def _append_now(self, bodies: Sequence[Pushed]) -> list[int | Full]:
        try:
            if self._log is None:
                self._log = PushLog.of(self._settings)
            return self._log.append(bodies)
        except PenstockError as error:
            http.logger.error("pushed events cannot be kept: %s", error)
            raise RequestError(
                503, "log_unavailable", "the log of pushed events does not answer; it is logged"
            ) from None


def _find_table(settings: Settings, name: str) -> Table:
    """Find the table whose stream takes pushes.

    Raises:
        RequestError: 404 where there is no such table or stream, 503 where declarations are broken.
    """
    use_case, _, rest = name.partition(".")
    try:
        if not rest or "." in rest:
            raise NotFoundError(f"{name[:100]!a} names no table", allowed="<use case>.<name>")
        table = get_table(settings, name)
        stream = load_streams(settings, use_case).get(name)
    except NotFoundError as error:
        raise RequestError(404, "unknown_table", str(error)) from None
    except PenstockError as error:
        http.logger.error("the declarations of %a cannot be read: %s", use_case, error)
        raise RequestError(
            503, "broken_declarations", "the table's declarations cannot be read; it is logged"
        ) from None
    if stream is None or not any(isinstance(source, Push) for source in stream.sources):
        raise RequestError(
            404, "no_stream", f"no stream of {name} takes pushes; streams.py declares them"
        )
    return table
