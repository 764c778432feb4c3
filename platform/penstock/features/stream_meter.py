"""How a stream is doing: events a second, how long each took to be online, what is waiting."""

import time

import numpy as np

from penstock.features.stream_table import NO_VERSION, Flushed
from penstock.progress import Progress
from penstock.records import Record

# Told often at first, then ever more seldom: a stream runs for months, and its log is kept.
_FIRST_INTERVAL_S = 1.0
_LAST_INTERVAL_S = 300.0
_SHARE_OF_AGE = 0.01


class StreamReport(Record):
    """What a stream did between its start and its end."""

    table: str
    version: int | None
    """The table's newest version; None: there is no table yet."""
    num_events: int
    num_kept: int
    num_quarantined: int
    num_flushes: int
    num_rebuilds: int


class Meter:
    """Counts, and tells of it from time to time."""

    def __init__(self, step: str, progress: Progress) -> None:
        self._step = step
        self._progress = progress
        self._begun_s = self._told_s = time.monotonic()
        self._delays_s: list[tuple[float, int]] = []
        self._flushed: Flushed | None = None
        self.num_events = 0
        self.num_kept = 0
        self.num_quarantined = 0
        self.num_flushes = 0
        self.num_rebuilds = 0

    def online(self, num_events: int, delay_s: float) -> None:
        """Take note that so many events are online, so long after they were received."""
        self.num_events += num_events
        self._delays_s.append((delay_s, num_events))

    def flushed(self, flushed: Flushed) -> None:
        """Take note of a flush."""
        self.num_kept += flushed.num_kept
        self.num_quarantined += flushed.num_quarantined
        self.num_flushes += 1
        self._flushed = flushed

    def is_due(self) -> bool:
        """Whether it is time to tell of it again."""
        now_s = time.monotonic()
        interval_s = (now_s - self._begun_s) * _SHARE_OF_AGE
        interval_s = min(max(interval_s, _FIRST_INTERVAL_S), _LAST_INTERVAL_S)
        return now_s - self._told_s >= interval_s

    def tell(self, lag: int | None) -> None:
        """Tell how things are."""
        moment_s = time.monotonic()
        parts = [self._rate(moment_s - self._told_s)]
        if lag is not None:
            parts.append(f"{lag:,} waiting")
        if self._flushed is not None:
            flushed = self._flushed
            parts.append(
                f"version {flushed.version} has {flushed.num_kept:,} of them"
                + (f", quarantine {flushed.num_quarantined:,}" if flushed.num_quarantined else "")
            )
        self._progress(f"{self._step}: {', '.join(parts)}", self.num_events, unit="events")
        self._told_s = moment_s
        self._delays_s.clear()

    def report(self, table: str, version: int) -> StreamReport:
        """Say what came of it all."""
        return StreamReport(
            table=table,
            version=None if version == NO_VERSION else version,
            num_events=self.num_events,
            num_kept=self.num_kept,
            num_quarantined=self.num_quarantined,
            num_flushes=self.num_flushes,
            num_rebuilds=self.num_rebuilds,
        )

    def _rate(self, since_s: float) -> str:
        num_events = sum(number for _, number in self._delays_s)
        text = f"{num_events / max(since_s, 1e-9):,.0f} events/s"
        if not num_events:
            return text
        median, slow = percentiles(self._delays_s, (0.5, 0.99))
        return f"{text} online after {1e3 * median:,.0f} ms (99 %: {1e3 * slow:,.0f} ms)"


def percentiles(delays_s: list[tuple[float, int]], shares: tuple[float, ...]) -> list[float]:
    """The delays that these shares of the events stayed within; there is at least one event."""
    ordered = sorted(delays_s)
    reached = np.cumsum([number for _, number in ordered])
    at = np.searchsorted(reached, [share * reached[-1] for share in shares])
    return [ordered[index][0] for index in at.tolist()]
