"""Answers to questions that only the cluster's head can answer, also while it is gone."""

import asyncio
import time
from collections.abc import Callable
from typing import Generic, TypeVar

import structlog

from penstock.errors import RequestError

T = TypeVar("T")

log = structlog.get_logger()


class LastKnown(Generic[T]):
    """Asks in a thread, one question at a time; gives the last answer where none comes in time.

    A question to a head that is gone waits until it is back. A thread for each request would soon
    be all threads, and a balancer would take nodes away that serve well.
    """

    def __init__(self, ask: Callable[[], T], *, age_s: float, timeout_s: float) -> None:
        """Prepare; nothing is asked.

        Args:
            ask: the question, which may block.
            age_s: how old an answer may be that nobody asks again for.
            timeout_s: how long a question is waited for.
        """
        self._ask = ask
        self._age_s = age_s
        self._timeout_s = timeout_s
        self._answers: list[T] = []
        self._answered_at_s = self._asked_at_s = float("-inf")
        self._asking: asyncio.Task[T] | None = None

    async def get(self) -> T:
        """Give an answer of at most that age, or the last one.

        Raises:
            RequestError: 503, for there has been none yet.
        """
        if self._answers and time.monotonic() - self._answered_at_s <= self._age_s:
            return self._answers[0]
        if self._asking is None:
            self._asked_at_s = time.monotonic()
            self._asking = asyncio.create_task(asyncio.to_thread(self._ask))
        asking = self._asking
        left_s = self._asked_at_s + self._timeout_s - time.monotonic()
        await asyncio.wait({asking}, timeout=max(0.0, left_s))
        if asking.done():
            self._take(asking)
        if not self._answers:
            raise RequestError(503, "unavailable", "the cluster's head does not answer; try again")
        return self._answers[0]

    def _take(self, asking: asyncio.Task[T]) -> None:
        if self._asking is not asking:
            return
        self._asking = None
        error = asking.exception()
        if error is None:
            self._answers = [asking.result()]
            self._answered_at_s = time.monotonic()
        elif not self._answers:
            raise error
        else:
            log.warning("the_head_did_not_answer", reason=f"{type(error).__name__}: {error}")
