"""The rows that a net trains on: in which order an epoch goes through them, and from where.

Needs torch alone, so that a net trains on a machine that has nothing else of ours.
"""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

_BATCHES_AHEAD = 3
_ROWS_PER_BLOCK = 1 << 10
_BLOCKS_PER_WINDOW = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Seat:
    """One worker's place among all of them."""

    rank: int = 0
    world: int = 1
    """How many workers there are."""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))


class Batch(NamedTuple):
    """One worker's share of the rows of one step, on its device."""

    inputs: Tensor
    targets: Tensor
    num_rows: int
    """All workers' together."""


class Rows(Protocol):
    """Where a loop takes its batches from."""

    @property
    def num_rows(self) -> int:
        """How many rows an epoch has, all workers together."""
        ...

    @property
    def num_steps(self) -> int:
        """How many batches an epoch has."""
        ...

    @property
    def batch_size(self) -> int:
        """How many rows a batch has but for the last, all workers together."""
        ...

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Give this worker's share of each batch of an epoch, from the given step on.

        The same epoch has the same batches however often it is asked for.
        """
        ...

    def numbers(self, epoch: int, step: int) -> Tensor | None:
        """Give the numbers of this worker's rows in a batch, where they have some."""
        ...


@dataclass(frozen=True, kw_only=True)
class Order:
    """In which order epochs go through rows: the same on every worker, another each epoch.

    Up to a million rows are shuffled as one. More go in windows of a million: each is put together
    of a thousand blocks from all over, and shuffled in itself. So a window of rows that lie in a
    file is read in long stretches. It depends on the number of rows alone, so that a run's steps
    are the same wherever its rows lie.
    """

    num_rows: int
    batch_size: int
    seed: int = 0
    positives: Tensor | None = None
    """bool [num_rows]: an epoch is drawn with replacement, half of it from these; None: each row
    comes once."""

    @property
    def num_steps(self) -> int:
        """How many batches an epoch has."""
        return -(-self.num_rows // self.batch_size)

    def epoch(self, epoch: int) -> Tensor:
        """Give the numbers of the rows, one batch after the other."""
        generator = torch.Generator().manual_seed(self.seed + 7_919 * epoch)
        shuffled = _shuffled(self.num_rows, generator)
        if self.positives is None:
            return shuffled
        half = self.num_rows // 2
        sides = ((self.positives, half), (~self.positives, self.num_rows - half))
        drawn = []
        for side, num_drawn in sides:
            (members,) = side.nonzero(as_tuple=True)
            drawn.append(members[torch.randint(len(members), (num_drawn,), generator=generator)])
        return torch.cat(drawn)[shuffled]


def _shuffled(num_rows: int, generator: torch.Generator) -> Tensor:
    if num_rows <= _ROWS_PER_BLOCK * _BLOCKS_PER_WINDOW:
        return torch.randperm(num_rows, generator=generator)
    num_blocks = -(-num_rows // _ROWS_PER_BLOCK)
    chosen = torch.randperm(num_blocks, generator=generator)
    in_block = torch.arange(_ROWS_PER_BLOCK)
    windows = []
    for start in range(0, num_blocks, _BLOCKS_PER_WINDOW):
        starts = chosen[start : start + _BLOCKS_PER_WINDOW, None] * _ROWS_PER_BLOCK
        window = (starts + in_block).reshape(-1)
        # The last block may be shorter.
        window = window[window < num_rows]
        windows.append(window[torch.randperm(len(window), generator=generator)])
    return torch.cat(windows)


@dataclass(frozen=True, kw_only=True)
class _Shares:
    """Which rows of each batch a worker has; its share is the same whatever the others do."""

    order: Order
    seat: Seat

    @property
    def num_rows(self) -> int:
        return self.order.num_rows

    @property
    def num_steps(self) -> int:
        return self.order.num_steps

    @property
    def batch_size(self) -> int:
        return self.order.batch_size

    def numbers(self, epoch: int, step: int) -> Tensor:
        """Give the numbers of this worker's rows in a batch."""
        start = step * self.order.batch_size
        batch = self.order.epoch(epoch)[start : start + self.order.batch_size]
        return batch[self.seat.rank :: self.seat.world]

    def _shares(self, order: Tensor, first_step: int) -> Iterator[tuple[Tensor, int]]:
        size = self.order.batch_size
        for start in range(first_step * size, len(order), size):
            batch = order[start : start + size]
            yield batch[self.seat.rank :: self.seat.world], len(batch)


@dataclass(frozen=True, kw_only=True)
class DeviceRows(_Shares):
    """Rows that lie on the device whole."""

    inputs: Tensor
    targets: Tensor

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Pick each batch where it lies."""
        order = self.order.epoch(epoch).to(self.inputs.device)
        for own, num_rows in self._shares(order, first_step):
            yield Batch(self.inputs[own], self.targets[own], num_rows)


class _Copy(NamedTuple):
    batch: Batch
    done: torch.cuda.Event | None


@dataclass(frozen=True, kw_only=True)
class HostRows(_Shares):
    """Rows in host memory or a mapped file: picked ahead, copied while the device computes."""

    inputs: Tensor
    targets: Tensor

    def batches(self, epoch: int, first_step: int) -> Iterator[Batch]:
        """Pick batches on a thread of its own; they arrive on a stream of their own."""
        stream = torch.cuda.Stream(self.seat.device) if self._is_cuda else None  # type: ignore[no-untyped-call]  # torch left it so
        waiting: deque[Future[_Copy]] = deque()
        pool = ThreadPoolExecutor(1, thread_name_prefix="batches")
        try:
            for own, num_rows in self._shares(self.order.epoch(epoch), first_step):
                waiting.append(pool.submit(self._copy, own, num_rows, stream))
                if len(waiting) > _BATCHES_AHEAD:
                    yield self._arrived(waiting.popleft().result())
            while waiting:
                yield self._arrived(waiting.popleft().result())
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    @property
    def _is_cuda(self) -> bool:
        return self.seat.device.type == "cuda"

    def _copy(self, own: Tensor, num_rows: int, stream: torch.cuda.Stream | None) -> _Copy:
        inputs, targets = self.inputs[own], self.targets[own]
        if stream is None:
            return _Copy(Batch(inputs, targets, num_rows), None)
        device = self.seat.device
        # Only from pinned memory does a copy run beside the computation.
        pinned = inputs.pin_memory(), targets.pin_memory()
        with torch.cuda.stream(stream):
            inputs, targets = (part.to(device, non_blocking=True) for part in pinned)
            return _Copy(Batch(inputs, targets, num_rows), stream.record_event())

    def _arrived(self, copy: _Copy) -> Batch:
        if copy.done is not None:
            current = torch.cuda.current_stream(self.seat.device)
            current.wait_event(copy.done)
            # Else the allocator could give their memory to the next copy too early.
            copy.batch.inputs.record_stream(current)
            copy.batch.targets.record_stream(current)
        return copy.batch


def hold(
    where: Literal["on the device", "in host memory", "in a file"],
    inputs: Tensor,
    targets: Tensor,
    *,
    order: Order,
    seat: Seat,
) -> Rows:
    """Hold rows where the planner says."""
    if where == "on the device":
        on_device = (inputs.to(seat.device), targets.to(seat.device))
        return DeviceRows(inputs=on_device[0], targets=on_device[1], order=order, seat=seat)
    return HostRows(inputs=inputs, targets=targets, order=order, seat=seat)
