import asyncio
import threading
import time
from collections.abc import Iterator

import pytest

from penstock.errors import RequestError
from penstock.serving.last_known import LastKnown


class Head:
    """Counts, and does not answer while it is gone."""

    def __init__(self) -> None:
        self.is_there = threading.Event()
        self.is_there.set()
        self.num_asked = 0
        self.fails = False

    def ask(self) -> int:
        self.num_asked += 1
        number = self.num_asked
        self.is_there.wait(30)
        if self.fails:
            raise OSError("no head")
        return number


@pytest.fixture
def head() -> Iterator[Head]:
    head = Head()
    yield head
    head.is_there.set()


def test_a_fresh_answer_is_given_again_and_an_old_one_asked_for(head: Head):
    async def scenario() -> None:
        known = LastKnown(head.ask, age_s=0.05, timeout_s=5)
        assert [await known.get(), await known.get()] == [1, 1]
        await asyncio.sleep(0.1)
        assert await known.get() == 2

    asyncio.run(scenario())


def test_while_the_head_is_gone_the_last_answer_stands_and_one_thread_waits(head: Head):
    async def scenario() -> None:
        known = LastKnown(head.ask, age_s=0, timeout_s=0.2)
        assert await known.get() == 1
        head.is_there.clear()
        started_s = time.monotonic()
        assert await asyncio.gather(*(known.get() for _ in range(50))) == [1] * 50
        for _ in range(50):
            # Nobody waits again for a question that was not answered.
            assert await known.get() == 1
        assert time.monotonic() - started_s < 5
        assert head.num_asked == 2
        head.is_there.set()
        while await known.get() == 1:
            await asyncio.sleep(0.01)

    asyncio.run(scenario())


def test_with_nothing_known_it_says_so_or_fails_as_the_question_does(head: Head):
    async def scenario() -> None:
        known = LastKnown(head.ask, age_s=0, timeout_s=0.05)
        head.is_there.clear()
        with pytest.raises(RequestError) as refused:
            await known.get()
        assert refused.value.status == 503
        head.fails = True
        head.is_there.set()
        await asyncio.sleep(0.2)
        with pytest.raises(OSError, match="no head"):
            await known.get()

    asyncio.run(scenario())


def test_a_question_that_fails_leaves_the_last_answer(head: Head):
    async def scenario() -> None:
        known = LastKnown(head.ask, age_s=0, timeout_s=5)
        assert await known.get() == 1
        head.fails = True
        assert await known.get() == 1
        head.fails = False
        assert await known.get() == 3

    asyncio.run(scenario())
