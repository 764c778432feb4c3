"""Carries scores from where they are made to the commit that writes them."""

import contextlib
import queue
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pyarrow as pa

from penstock.progress import Progress


class ScoreStream:
    """The scores on their way into the commit: counted, told of, and checked at their end.

    They are made in a thread of their own: the table's writer pulls from within its own runtime,
    in which no other table can be opened (delta-io/delta-rs: "Cannot start a runtime from within
    a runtime").
    """

    def __init__(
        self,
        parts: Iterator[pa.Table],
        at_end: Callable[[], None],
        num_expected: int,
        progress: Progress,
    ) -> None:
        """Take what makes the parts, what to check after the last, and how many rows to expect."""
        self._parts = parts
        self._at_end = at_end
        self._num_expected = num_expected
        self._progress = progress
        # One part waits while another is written: no more than that is in memory.
        self._queue: queue.Queue[pa.Table | BaseException | None] = queue.Queue(maxsize=1)
        self._abandoned = threading.Event()
        self._thread = threading.Thread(target=self._produce, name="scores", daemon=True)

    @contextlib.contextmanager
    def reader(self) -> Iterator[pa.RecordBatchReader]:
        """Give the stream; left early, it stops the scoring."""
        self._thread.start()
        try:
            first = self._take()
            if first is None:
                raise AssertionError(f"{self._num_expected} rows became no scores")
            yield pa.RecordBatchReader.from_batches(first.schema, self._batches(first))
        finally:
            self._abandoned.set()
            self._thread.join()

    def _batches(self, first: pa.Table) -> Iterator[Any]:
        part: pa.Table | None = first
        while part is not None:
            yield from part.cast(first.schema).to_batches()
            part = self._take()

    def _take(self) -> pa.Table | None:
        item = self._queue.get()
        if isinstance(item, BaseException):
            raise item
        return item

    def _produce(self) -> None:
        try:
            num_rows = 0
            for part in self._parts:
                num_rows += part.num_rows
                if not self._put(part):
                    return
                self._progress("score", num_rows, self._num_expected)
            if num_rows != self._num_expected:
                raise AssertionError(f"{self._num_expected} rows became {num_rows} scores")
            self._at_end()
            self._put(None)
        except BaseException as error:  # noqa: BLE001  # raised again where the scores are taken
            self._put(error)

    def _put(self, item: pa.Table | BaseException | None) -> bool:
        while not self._abandoned.is_set():
            with contextlib.suppress(queue.Full):
                self._queue.put(item, timeout=0.1)
                return True
        return False
