"""Gathers requests that wait at the same time, so that one look-up and one run answer all of them.

`@serve.batch` does this too, and more: per request it inspects the signature of the function anew
and copies Serve's context, per batch it sets six metrics. Here that is a tenth of the whole
request, so the part that is needed stands here by itself.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")
_QUIET_TURNS = 2
"""A batch starts once so many turns of the loop in a row brought no item. A turn costs some 20 us;
under load the batches become larger by half, and a sixth more is answered."""


class Batcher(Generic[ItemT, ResultT]):
    """Runs a function over lists of items, one list at a time, on the loop that submits."""

    def __init__(
        self,
        run: Callable[[Sequence[ItemT]], Awaitable[Sequence[ResultT]]],
        *,
        max_batch_size: int,
        wait_s: float,
    ) -> None:
        """Prepare; nothing runs until the first item.

        Args:
            run: gives one result per item, in their order; what it raises, every submitter gets.
            max_batch_size: items in one call at most.
            wait_s: how long a first item waits for company; 0: for what is already there.
        """
        self._run = run
        self._max_batch_size = max_batch_size
        self._wait_s = wait_s
        self._waiting: deque[tuple[ItemT, asyncio.Future[ResultT]]] = deque()
        self._wake: asyncio.Future[None] | None = None
        self._worker: asyncio.Task[None] | None = None

    @property
    def num_waiting(self) -> int:
        """Items that no batch has taken yet."""
        return len(self._waiting)

    def submit(self, item: ItemT) -> "asyncio.Future[ResultT]":
        """Queue an item; the future gives its result."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[ResultT] = loop.create_future()
        self._waiting.append((item, future))
        if self._worker is None or self._worker.done():
            self._worker = loop.create_task(self._work())
        elif self._wake is not None and not self._wake.done():
            self._wake.set_result(None)
        return future

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            while not self._waiting:
                self._wake = loop.create_future()
                await self._wake
            if self._wait_s > 0 and len(self._waiting) < self._max_batch_size:
                await asyncio.sleep(self._wait_s)
            await self._let_in()
            await self._run_one(self._take())

    async def _let_in(self) -> None:
        """Let items in that are on their way: read, or to be read, but not yet submitted."""
        num_quiet_turns = num_before = 0
        while num_quiet_turns < _QUIET_TURNS and len(self._waiting) < self._max_batch_size:
            num_quiet_turns = num_quiet_turns + 1 if len(self._waiting) == num_before else 0
            num_before = len(self._waiting)
            await asyncio.sleep(0)

    def _take(self) -> list[tuple[ItemT, "asyncio.Future[ResultT]"]]:
        taken: list[tuple[ItemT, asyncio.Future[ResultT]]] = []
        while self._waiting and len(taken) < self._max_batch_size:
            entry = self._waiting.popleft()
            # Whoever was cancelled needs no answer.
            if not entry[1].done():
                taken.append(entry)
        return taken

    async def _run_one(self, batch: list[tuple[ItemT, "asyncio.Future[ResultT]"]]) -> None:
        if not batch:
            return
        try:
            results = await self._run([item for item, _ in batch])
            if len(results) != len(batch):
                raise AssertionError(f"{len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - each submitter gets it; the worker lives on
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
