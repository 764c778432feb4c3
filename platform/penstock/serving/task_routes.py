"""The async routes of a model: rows are taken now, scored in their turn, and fetched by id.

`POST …/predict-async` answers 202 when the rows are checked and on the disk, `GET …/tasks/<id>`
says how it stands and gives the result, `DELETE` forgets what nobody works on.
"""

import asyncio
import re
import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from hashlib import blake2b
from typing import Any

import orjson

from penstock.errors import PenstockError, RequestError
from penstock.registry.package import Signature
from penstock.serving import http
from penstock.serving.protocols import Protocols
from penstock.serving.requests import RequestParser, Row, too_large
from penstock.serving.task_limits import (
    LIFE_S,
    MAX_TASK_BODY_BYTES,
    MAX_TASK_ROWS,
    RESULT_LIFE_S,
    ROWS_PER_CHUNK,
)
from penstock.settings import Settings

_MAX_READ_AT_ONCE = 2
_RETRY_WHEN_FULL_S = 30


class TaskRoutes:
    """Answers the async paths of a model, in every replica of it."""

    def __init__(
        self,
        settings: Settings,
        signature: Signature,
        protocols: Protocols,
        served_paths: Callable[[], Collection[str]],
    ) -> None:
        """Prepare; the store is opened by the first async request.

        Args:
            settings: which store.
            signature: the fields of a row, and how many one predict request may have.
            protocols: of the version, for the refusal of another one.
            served_paths: those that take rows at this moment.
        """
        self._settings = settings
        self._model = signature.model
        self._protocols = protocols
        self._served_paths = served_paths
        self._rows_per_chunk = min(ROWS_PER_CHUNK, signature.serving.max_rows_per_request)
        self._parser = RequestParser(
            signature.request_fields,
            feature_names=signature.feature_names,
            max_rows=MAX_TASK_ROWS,
            max_body_bytes=MAX_TASK_BODY_BYTES,
        )
        self._base = f"{http.MODEL_PREFIX}{self._model}"
        base = re.escape(self._base)
        self._asking = re.compile(rf"({base}(?:/versions/(\d{{1,18}}))?/predict)-async", re.ASCII)
        self._telling = re.compile(rf"{base}/tasks/([^/]+)")
        self._num_reading = 0
        self._store: Any = None

    async def answer(self, scope: http.Scope, receive: http.Receive) -> http.Answer | None:
        """Answer a request; None where its path is none of these."""
        path, method = scope["path"], scope["method"]
        asking = self._asking.fullmatch(path)
        if asking is not None and asking[1] in self._served_paths():
            if method != "POST":
                return http.method_answer(method, "POST")
            version = None if asking[2] is None else int(asking[2])
            return await self._take(scope["headers"], receive, version)
        telling = self._telling.fullmatch(path)
        if telling is None:
            return None
        if method == "DELETE":
            return await asyncio.to_thread(self._remove, telling[1])
        if method in ("GET", "HEAD"):
            return await asyncio.to_thread(self._tell, telling[1])
        return http.method_answer(method, "GET", "HEAD", "DELETE")

    async def _take(
        self, headers: http.Headers, receive: http.Receive, version: int | None
    ) -> http.Answer:
        http.check_json(headers)
        request_id = http.request_id(headers)
        life_s = http.timeout_s(headers) or LIFE_S
        if self._num_reading >= _MAX_READ_AT_ONCE:
            await http.drain(receive)
            raise RequestError(
                503, "overloaded", f"{self._num_reading} async requests are being read"
            )
        self._num_reading += 1
        try:
            body = await http.read_body(headers, receive, max_bytes=MAX_TASK_BODY_BYTES)
            # In a thread: tens of thousands of rows take longer to read than others may wait.
            return await asyncio.to_thread(self._accept, body, request_id, life_s, version)
        finally:
            self._num_reading -= 1

    def _accept(
        self, body: bytes, request_id: bytes, life_s: float, version: int | None
    ) -> http.Answer:
        from penstock.serving.task_tables import Full, NewTask

        rows = self._parser.parse(body)
        size, chunks = cut(rows, self._rows_per_chunk, self._settings.serving.max_body_bytes)
        identity = blake2b(b"%d:%d:" % (version or 0, len(request_id)), digest_size=16)
        identity.update(request_id)
        identity.update(body)
        now_s = time.time()
        new = NewTask(
            model=self._model,
            task_id=identity.hexdigest(),
            asked_version=version,
            num_rows=len(rows),
            rows_per_chunk=size,
            chunks=chunks,
            created_at_s=now_s,
            deadline_s=now_s + life_s,
        )
        accepted = self._ask_store(lambda store: store.accept(new))
        if isinstance(accepted, Full):
            raise RequestError(503, "full", accepted.what, retry_after_s=_RETRY_WHEN_FULL_S)
        url = f"{self._base}/tasks/{accepted.task_id}"
        receipt = {
            "task_id": accepted.task_id,
            "status": accepted.status,
            "num_rows": accepted.num_rows,
            "status_url": url,
        }
        location = (b"location", url.encode())
        return http.Answer(status=202, body=orjson.dumps(receipt), headers=(location,))

    def _tell(self, task_id: str) -> http.Answer:
        state = self._ask_store(lambda store: store.find(self._model, task_id))
        if state is None:
            raise _unknown_task(task_id)
        told: dict[str, Any] = {
            "task_id": state.task_id,
            "model": state.model,
            "status": state.status,
            "num_rows": state.num_rows,
            "num_rows_done": state.num_rows_done,
            "created_at": _written(state.created_at_s),
            "deadline": _written(state.deadline_s),
        }
        if state.reason is not None:
            told["reason"] = state.reason
        if state.code is not None:
            told["code"] = state.code
        if state.ended_at_s is not None:
            told["ended_at"] = _written(state.ended_at_s)
            told["kept_until"] = _written(state.ended_at_s + RESULT_LIFE_S)
        if state.status == "done":
            parts = self._ask_store(lambda store: store.answers(self._model, task_id))
            told["result"] = {
                "model": state.model,
                "version": state.version,
                "predictions": orjson.Fragment(b"[" + b",".join(parts) + b"]"),
            }
        return http.Answer(status=200, body=orjson.dumps(told))

    def _remove(self, task_id: str) -> http.Answer:
        state = self._ask_store(lambda store: store.remove(self._model, task_id))
        if state is None:
            raise _unknown_task(task_id)
        if state.status == "running":
            raise RequestError(
                409, "task_running", "the task is being worked on; it can be removed when it ended"
            )
        return http.Answer(status=200, body=orjson.dumps({"task_id": task_id, "was": state.status}))

    def _ask_store(self, ask: Callable[[Any], Any]) -> Any:
        from penstock.serving.task_store import TaskStore

        try:
            if self._store is None:
                self._store = TaskStore.of(self._settings)
            return ask(self._store)
        except PenstockError as error:
            http.logger.error("async requests cannot be kept: %s", error)
            raise RequestError(
                503,
                "store_unavailable",
                "async requests cannot be kept or read; it is logged",
            ) from None


def cut(rows: list[Row], rows_per_chunk: int, max_bytes: int) -> tuple[int, list[bytes]]:
    """Cut rows into bodies of predict requests.

    Args:
        rows: checked ones.
        rows_per_chunk: in one body at most.
        max_bytes: of one body.

    Returns:
        How many rows each but the last has, and the bodies.

    Raises:
        RequestError: 413, a row alone is larger than a body may be.
    """
    size = rows_per_chunk
    while True:
        starts = range(0, len(rows), size)
        chunks = [orjson.dumps({"rows": rows[start : start + size]}) for start in starts]
        if max(map(len, chunks)) <= max_bytes:
            return size, chunks
        if size == 1:
            raise too_large(max_bytes)
        size = (size + 1) // 2


def _written(time_s: float) -> str:
    return datetime.fromtimestamp(time_s, UTC).isoformat(timespec="milliseconds")


def _unknown_task(task_id: str) -> RequestError:
    return RequestError(
        404, "unknown_task", f"no task {task_id[:64]!a}: it never was, or its result was removed"
    )
