"""What the routes that take pushed things share: a body is durable before it is answered, and once.

A body that comes again, with the same `Idempotency-Key` or both times without one, is answered as
the first time and not kept again; see `data.events.push_log` for how long it is known.
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b

import orjson

from penstock.data.events.push_log import Full, Pushed, PushLog
from penstock.errors import PenstockError, RequestError
from penstock.serving import http
from penstock.serving.batching import Batcher
from penstock.settings import Settings

_MAX_REQUESTS = 64
_BODIES_PER_COMMIT = 64
_MAX_KEY_BYTES = 200
_RETRY_WHEN_FULL_S = b"30"


@dataclass(frozen=True, kw_only=True)
class Readable:
    """What a body says."""

    table: str
    """The log that it goes into."""
    events: Sequence[bytes]
    """Each one JSON object without a line end."""
    receipt: Mapping[str, str]
    """What the answer says beside the counts."""


class Intake:
    """Appends bodies to the log of pushed events; a route gives the function that reads them."""

    def __init__(self, settings: Settings, *, moved_by: str) -> None:
        """Prepare; the log is opened by the first body.

        Args:
            settings: which log, and how large a body may be.
            moved_by: who takes the log's end, for the answer when nobody did for too long.
        """
        self._settings = settings
        self._moved_by = moved_by
        self._log: PushLog | None = None
        self._num_requests = 0
        # One commit for all that wait: a disk takes a few hundred commits a second.
        self._batcher = Batcher(self._append, max_batch_size=_BODIES_PER_COMMIT, wait_s=0.0)

    async def take(
        self,
        scope: http.Scope,
        receive: http.Receive,
        read: Callable[[bytes, bytes], Readable],
        kinds: Sequence[bytes] = (),
    ) -> http.Answer:
        """Answer a request.

        Args:
            scope: ASGI's.
            receive: ASGI's.
            read: turns body and content type into what is kept; runs in a thread.
            kinds: content types beside JSON.
        """
        if scope["method"] != "POST":
            return http.method_answer(scope["method"], "POST")
        if self._num_requests >= _MAX_REQUESTS:
            raise RequestError(503, "overloaded", f"{self._num_requests} requests are in flight")
        self._num_requests += 1
        try:
            return await self._take(scope["headers"], receive, read, kinds)
        finally:
            self._num_requests -= 1

    async def _take(
        self,
        headers: http.Headers,
        receive: http.Receive,
        read: Callable[[bytes, bytes], Readable],
        kinds: Sequence[bytes],
    ) -> http.Answer:
        kind = http.check_json(headers, *kinds)
        max_bytes = self._settings.serving.max_body_bytes
        body = await http.read_body(headers, receive, max_bytes=max_bytes)
        key = http.only_header(headers, b"idempotency-key") or b""
        if len(key) > _MAX_KEY_BYTES:
            raise RequestError(422, "bad_key", f"Idempotency-Key has over {_MAX_KEY_BYTES} bytes")
        # Large bodies take a while to read, and the server has others to answer.
        found = await asyncio.to_thread(read, body, kind)
        identity = blake2b(b"%d:" % len(key) + key, digest_size=16)
        identity.update(body)
        pushed = Pushed(found.table, found.events, identity.digest())
        written = await self._batcher.submit(pushed)
        if isinstance(written, Full):
            full = RequestError(
                503,
                "full",
                f"{written.num_waiting:,} events of {found.table} wait for {self._moved_by} "
                "moves them on",
            )
            return http.error_answer(full, ((b"retry-after", _RETRY_WHEN_FULL_S),))
        receipt = {**found.receipt, "accepted": len(found.events), "sequence": written}
        return http.Answer(status=202, body=orjson.dumps(receipt))

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
