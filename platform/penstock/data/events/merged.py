"""Several sources read as one: each keeps its own partitions."""

import time
from collections.abc import Callable, Mapping, Sequence

from penstock.data.events import Event, EventSource

_TURN_S = 0.01


class MergedSource:
    """Asks one source after the other, each first in its turn."""

    def __init__(self, sources: Sequence[EventSource]) -> None:
        """Take sources that are not open yet."""
        self._sources = list(sources)

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        """Open all of them; each picks its own positions."""
        opened: list[EventSource] = []
        try:
            for source in self._sources:
                source.open(positions, before_revoke)
                opened.append(source)
        except BaseException:
            for source in opened:
                source.close()
            raise

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        """Give what any of them has; a busy one leaves room for the others."""
        deadline_s = time.monotonic() + wait_s
        events: list[Event] = []
        while True:
            share = max(1, max_events // len(self._sources))
            for source in self._sources:
                if len(events) < max_events:
                    events += source.poll(min(share, max_events - len(events)), 0.0)
            self._sources.append(self._sources.pop(0))
            left_s = deadline_s - time.monotonic()
            if events or left_s <= 0:
                return events
            # One may wait by itself, but only so long that the others are not kept waiting.
            events = self._sources[0].poll(max_events, min(_TURN_S, left_s))
            if events:
                return events

    def commit(self, positions: Mapping[str, int]) -> None:
        """Tell all of them; each knows its own."""
        for source in self._sources:
            source.commit(positions)

    def lag(self) -> int | None:
        """The sum; unknown where one does not know."""
        lags = [source.lag() for source in self._sources]
        return None if None in lags else sum(lag for lag in lags if lag is not None)

    def close(self) -> None:
        """Close all of them, whatever one of them meets."""
        for source in self._sources:
            source.close()
