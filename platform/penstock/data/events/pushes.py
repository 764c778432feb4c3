"""The pushed events of a table as a source: one partition, in the order of their numbers."""

import time
from collections import deque
from collections.abc import Callable, Mapping

import structlog

from penstock.data.events import Event
from penstock.data.events.push_log import PushLog
from penstock.errors import DataError, PenstockError

_LOOK_S = 0.02

log = structlog.get_logger()


class PushSource:
    """Reads the log that the HTTP route appends to."""

    def __init__(self, push_log: PushLog, table: str) -> None:
        """Prepare for one table."""
        self._log = push_log
        self._table = table
        self._partition = ""
        self._position = 0
        self._read_ahead: deque[tuple[int, bytes]] = deque()
        self._is_told = False

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        """Start behind what the table has.

        Raises:
            DataError: the log ends before that: it is an older copy of itself.
        """
        del before_revoke  # nobody else reads here
        head = self._log.head(self._table)
        # With the log's own name: a log that was lost and begun anew is read from its begin.
        self._partition = f"push:{self._table}#{head.log_id}"
        self._position = positions.get(self._partition, 0)
        self._read_ahead.clear()
        if self._position > head.next_sequence:
            raise DataError(
                f"the log of pushed events of {self._table} ends at {head.next_sequence}, and the "
                f"table has them up to {self._position}",
                next_step="it was put back from an older copy: remove the table's row from "
                "penstock_push_heads, so that it begins anew, and push again what was lost",
            )

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        """Give what was pushed; a database that does not answer is tried again."""
        deadline_s = time.monotonic() + wait_s
        while True:
            self._fill(max_events)
            if self._read_ahead:
                taken = min(max_events, len(self._read_ahead))
                found = [self._read_ahead.popleft() for _ in range(taken)]
                return [Event(self._partition, n, n + 1, value) for n, value in found]
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                return []
            time.sleep(min(_LOOK_S, left_s))

    def commit(self, positions: Mapping[str, int]) -> None:
        """Let the log forget what the table has."""
        position = positions.get(self._partition)
        if position is not None:
            try:
                self._log.trim(self._table, position)
            except PenstockError as error:
                # The next flush forgets more; the table's positions are what counts.
                self._tell(error)

    def lag(self) -> int | None:
        """Events that are in the log and were not given yet."""
        try:
            waiting = self._log.head(self._table).next_sequence - self._position
        except PenstockError:
            return None
        return waiting + len(self._read_ahead)

    def close(self) -> None:
        """Close the log."""
        self._log.close()

    def _fill(self, max_events: int) -> None:
        if self._read_ahead:
            return
        try:
            self._read_ahead.extend(self._log.read(self._table, self._position, max_events))
            self._is_told = False
        except PenstockError as error:
            self._tell(error)
        if self._read_ahead:
            self._position = self._read_ahead[-1][0] + 1

    def _tell(self, error: PenstockError) -> None:
        if not self._is_told:
            self._is_told = True
            log.warning("push_log_does_not_answer", table=self._table, reason=error.found)
