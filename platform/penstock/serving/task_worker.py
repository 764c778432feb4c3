"""Scores accepted async requests, chunk by chunk, beside a replica's other requests.

One replica of a model does it at a time: whoever holds the lock, and the kernel gives that to
another when it dies. A chunk goes through the replica's predict path, under an id that is the same
when it is tried again, so its predictions are too.
"""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import orjson

from penstock.errors import BusyError
from penstock.serving import http
from penstock.serving.task_policy import (
    MAX_ATTEMPTS,
    Fail,
    Keep,
    Outcome,
    after_fault,
    decide,
)
from penstock.settings import Settings

if TYPE_CHECKING:
    from penstock.serving.task_store import TaskStore
    from penstock.serving.task_tables import Turn

Score = Callable[[str, http.Headers, bytes], Awaitable[http.Answer]]
Settled = tuple["Turn", int | None, Sequence[bytes], Outcome]

_LOOK_S = 0.25
_LOCK_LOOK_S = 1.0
_AFTER_ERROR_S = 5.0
_SWEEP_S = 5.0
_CHUNKS_PER_ROUND = 16
"""The prediction log is on the disk, and the answers in the store, once for so many."""


class TaskWorker:
    """Works off a model's tasks on the loop that answers its requests."""

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        score: Score,
        logged: Callable[[], Awaitable[None]],
    ) -> None:
        """Prepare; nothing runs before `start`.

        Args:
            settings: which store.
            model: whose tasks.
            score: answers a predict request: path, headers, body.
            logged: waits until what was answered is in the prediction log.
        """
        self._settings = settings
        self._model = model
        self._score = score
        self._logged = logged
        self._task: asyncio.Task[None] | None = None
        self._is_closing = False
        self.is_working = False
        """Whether something was taken that is not settled yet."""
        self._swept_s = float("-inf")

    def start(self) -> None:
        """Work on the running loop from now on; again and again is once."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run())

    def close(self) -> None:
        """Take no further chunk."""
        self._is_closing = True

    async def _run(self) -> None:
        while not self._is_closing:
            try:
                if await asyncio.to_thread(self._has_store):
                    await self._work_while_held()
                await asyncio.sleep(_LOCK_LOOK_S)
            except BusyError:
                await asyncio.sleep(_LOCK_LOOK_S)
            except Exception:  # noqa: BLE001 - it tries again; answers go on meanwhile
                http.logger.exception("async requests of %s cannot be worked on", self._model)
                await asyncio.sleep(_AFTER_ERROR_S)

    def _has_store(self) -> bool:
        """Whether anything can be there: where nobody asks, no file is made for it."""
        url = self._settings.task_store_url
        return not url.startswith("sqlite") or Path(url.removeprefix("sqlite:///")).exists()

    async def _work_while_held(self) -> None:
        with contextlib.ExitStack() as held:
            store = await asyncio.to_thread(self._hold, held)
            while not self._is_closing:
                self.is_working = await self.work(store)
                if not self.is_working:
                    await asyncio.sleep(_LOOK_S)

    def _hold(self, held: contextlib.ExitStack) -> "TaskStore":
        # Where nobody asks, a replica does not load a database library either.
        from penstock.registry.lock import model_lock
        from penstock.serving.task_store import TaskStore

        # A name that no model has.
        held.enter_context(model_lock(self._settings, f"tasks:{self._model}"))
        store = TaskStore.of(self._settings)
        held.callback(store.close)
        return store

    async def work(self, store: "TaskStore") -> bool:
        """Work for one round: a few chunks, then one commit. Says whether there was any."""
        if time.monotonic() - self._swept_s > _SWEEP_S:
            self._swept_s = time.monotonic()
            await asyncio.to_thread(lambda: store.sweep(now_s=time.time()))
        settled: list[Settled] = []
        num_left = _CHUNKS_PER_ROUND
        while num_left > 0 and not self._is_closing:
            in_hand = [turn.task_id for turn, *_ in settled]
            turn = await asyncio.to_thread(self._take, store, num_left, in_hand)
            if turn is None:
                break
            settled.append(await self._work_on(turn))
            num_left -= len(turn.bodies)
            if turn.num_attempts > 1:
                # One whose last attempt did not end well is alone in its round: if it kills us, no
                # other is counted with it.
                break
        if not settled:
            return False
        # First the log, then the answers: a kill between the two repeats these chunks.
        await self._logged()
        await asyncio.to_thread(lambda: store.settle(settled, now_s=time.time()))
        return True

    def _take(self, store: "TaskStore", max_chunks: int, in_hand: Sequence[str]) -> "Turn | None":
        return store.take_turn(
            self._model,
            now_s=time.time(),
            max_chunks=max_chunks,
            but=in_hand,
            may_be_suspect=not in_hand,
        )

    async def _work_on(self, turn: "Turn") -> Settled:
        version = turn.version
        answers: list[bytes] = []
        outcome: Outcome = Keep()
        if turn.num_attempts > MAX_ATTEMPTS:
            died = after_fault("the server ended each time", num_attempts=MAX_ATTEMPTS)
            return turn, version, answers, _located(died, turn, 0)
        for offset, body in enumerate(turn.bodies):
            started_s = time.perf_counter()
            answer = await self._score(
                _path(turn.model, version), _headers(turn, turn.first + offset), body
            )
            if answer.status != 200:
                outcome = _located(_refused(answer, turn), turn, offset)
                break
            document = orjson.loads(answer.body)
            version = document["version"]
            answers.append(orjson.dumps(document["predictions"])[1:-1])
            # Half of the time is for those who wait for their answers.
            await asyncio.sleep(time.perf_counter() - started_s)
        return turn, version, answers, outcome


def _path(model: str, version: int | None) -> str:
    named = "" if version is None else f"/versions/{version}"
    return f"{http.MODEL_PREFIX}{model}{named}/predict"


def _headers(turn: "Turn", number: int) -> http.Headers:
    return (
        (b"host", b"localhost"),
        (b"content-type", b"application/json"),
        (b"x-request-id", f"{turn.task_id}-{number}".encode()),
    )


def _refused(answer: http.Answer, turn: "Turn") -> Outcome:
    refusal = orjson.loads(answer.body)
    waits = [int(value) for name, value in answer.headers if name == b"retry-after"]
    return decide(
        answer.status,
        refusal["code"],
        f"{refusal['message']} at {refusal['path']}",
        retry_after_s=max(waits, default=1),
        is_insisted=turn.is_insisted,
        num_attempts=turn.num_attempts,
    )


def _located(outcome: Outcome, turn: "Turn", offset: int) -> Outcome:
    """Say which rows a failure is about: the path in it counts from the first of them."""
    if not isinstance(outcome, Fail):
        return outcome
    first = (turn.first + offset) * turn.rows_per_chunk
    last = min(first + turn.rows_per_chunk, turn.num_rows) - 1
    return Fail(outcome.code, f"rows {first} to {last}: {outcome.reason}")
