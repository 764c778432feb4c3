import asyncio
from collections.abc import Sequence

import pytest

from penstock.serving.batching import Batcher


class Doubler:
    """Doubles numbers and remembers what came together."""

    def __init__(self):
        self.batches: list[list[int]] = []

    async def __call__(self, items: Sequence[int]) -> list[int]:
        self.batches.append(list(items))
        await asyncio.sleep(0)
        if 13 in items:
            raise ValueError("thirteen")
        return [2 * item for item in items]


def batcher_of(doubler: Doubler, max_batch_size: int = 4, wait_s: float = 0.0) -> Batcher:
    return Batcher(doubler, max_batch_size=max_batch_size, wait_s=wait_s)


def test_what_waits_at_the_same_time_runs_together_and_each_gets_its_own():
    doubler = Doubler()

    async def ask() -> list[int]:
        batcher = batcher_of(doubler)
        return list(await asyncio.gather(*(batcher.submit(n) for n in range(10))))

    assert asyncio.run(ask()) == [2 * n for n in range(10)]
    assert doubler.batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]


def test_what_no_batch_has_taken_yet_is_waiting():
    async def ask() -> list[int]:
        batcher = batcher_of(Doubler())
        answers = [batcher.submit(n) for n in range(6)]
        waiting = [batcher.num_waiting]
        for answer in (answers[0], answers[5]):
            await answer
            waiting.append(batcher.num_waiting)
        return waiting

    assert asyncio.run(ask()) == [6, 2, 0]


def test_a_lone_item_does_not_wait():
    doubler = Doubler()

    async def ask() -> list[int]:
        batcher = batcher_of(doubler)
        return [await batcher.submit(1), await batcher.submit(2)]

    assert asyncio.run(ask()) == [2, 4]
    assert doubler.batches == [[1], [2]]


def test_what_arrives_in_the_loops_next_turns_joins_without_a_wait():
    doubler = Doubler()

    async def ask() -> None:
        batcher = batcher_of(doubler)

        async def after(num_turns: int, item: int) -> int:
            for _ in range(num_turns):
                await asyncio.sleep(0)
            return await batcher.submit(item)

        # As requests do that the loop has read one turn after the other.
        await asyncio.gather(after(0, 1), after(2, 2), after(4, 3), after(20, 4))

    asyncio.run(ask())
    assert doubler.batches == [[1, 2, 3], [4]]


def test_with_a_wait_a_later_item_joins():
    doubler = Doubler()

    async def ask() -> None:
        batcher = batcher_of(doubler, wait_s=0.05)
        first = batcher.submit(1)
        await asyncio.sleep(0.005)
        await asyncio.gather(first, batcher.submit(2))

    asyncio.run(ask())
    assert doubler.batches == [[1, 2]]


def test_a_failure_reaches_everyone_in_the_batch_and_the_next_batch_runs():
    doubler = Doubler()

    async def ask() -> list[object]:
        batcher = batcher_of(doubler, max_batch_size=2)
        futures = [batcher.submit(n) for n in (13, 1, 2)]
        return list(await asyncio.gather(*futures, return_exceptions=True))

    first, second, third = asyncio.run(ask())
    assert isinstance(first, ValueError)
    assert second is first
    assert third == 4


def test_a_wrong_number_of_results_is_an_error_and_no_mix_up():
    async def loses_one(items: Sequence[int]) -> list[int]:
        return list(items[1:])

    async def ask() -> None:
        await Batcher(loses_one, max_batch_size=4, wait_s=0.0).submit(1)

    with pytest.raises(AssertionError, match="0 results for 1 items"):
        asyncio.run(ask())


def test_whoever_left_is_not_computed():
    doubler = Doubler()

    async def ask() -> int:
        batcher = batcher_of(doubler)
        gone, stays = batcher.submit(1), batcher.submit(2)
        gone.cancel()
        return await stays

    assert asyncio.run(ask()) == 4
    assert doubler.batches == [[2]]
