"""Why a served feature differs from the one that training would see: a verdict with its reason.

late         the row used online was older than the newest one that the tables have by now, or
             lacked events that came into the tables after the prediction
ahead        the row used online was newer than the request's as-of time: the store holds the
             newest only
expired      the row used online is older than the view's TTL, as it is declared now, allows
resolution   window edges within the stream's stated resolution give the served value
unexplained  everything else

Pure: nothing is read here.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

from penstock.features.windows import Kind

Reason: TypeAlias = Literal["late", "ahead", "expired", "resolution", "unexplained"]
REASONS: tuple[Reason, ...] = ("late", "ahead", "expired", "resolution", "unexplained")
SAME_ROW = ""
"""Stands where the same row was used on both sides: which row it was explains nothing."""
RELATIVE_TOLERANCE = 1e-6
# Sums of parts leave so much where the exact value is zero.
_ABSOLUTE_TOLERANCE = 1e-9
_MAX_FREE_EVENTS = 10

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]


def equal(served: Floats, recomputed: Floats) -> NDArray[np.bool_]:
    """Whether both are missing, or agree within 1e-6 of the larger one."""
    largest = np.maximum(np.abs(served), np.abs(recomputed))
    with np.errstate(invalid="ignore"):
        near = np.abs(served - recomputed) <= largest * RELATIVE_TOLERANCE + _ABSOLUTE_TOLERANCE
    # Within a millionth of infinity lies every number.
    same: NDArray[np.bool_] = (near & np.isfinite(largest)) | (served == recomputed)
    return same | (np.isnan(served) & np.isnan(recomputed))


@dataclass(frozen=True, kw_only=True)
class RowsFound:
    """Which rows of one view were found for each prediction.

    Attributes:
        as_of_us: int64 [n], the time that was asked about.
        served_us: int64 [n], the event time of the row used online; the smallest number: none.
        newest_us: int64 [n], the same of the row that the tables give now, at or before `as_of_us`
            and within the TTL.
        ttl_us: how long a row is valid; None: for ever.
    """

    as_of_us: Ints
    served_us: Ints
    newest_us: Ints
    ttl_us: int | None


def reasons_of_rows(found: RowsFound) -> NDArray[np.str_]:
    """Say for each prediction what the rows that were used explain; SAME_ROW: nothing."""
    none = np.iinfo(np.int64).min
    reasons = np.full(len(found.as_of_us), SAME_ROW, dtype="U16")
    if found.ttl_us is not None:
        is_old = (found.served_us != none) & (found.served_us < found.as_of_us - found.ttl_us)
        reasons[is_old] = "expired"
    reasons[found.newest_us > found.served_us] = "late"
    reasons[found.served_us > found.as_of_us] = "ahead"
    return reasons


@dataclass(frozen=True, kw_only=True)
class EntityEvents:
    """One entity's events in the order of time, as far as one aggregation looks at them.

    Attributes:
        time_us: int64 [n], rising.
        values: float64 [n], NaN: no value; None: the aggregation counts events.
        maybe_unseen: bool [n], events that may have come after the prediction.
    """

    time_us: Ints
    values: Floats | None
    maybe_unseen: NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class WindowCell:
    """A served window feature: (at - delay - width, at - delay], aggregated by `kind`."""

    kind: Kind
    at_us: int
    delay_us: int
    width_us: int
    served: float

    @property
    def edges_us(self) -> tuple[int, int]:
        """The window's edges: after the first, up to the second."""
        end_us = self.at_us - self.delay_us
        return end_us - self.width_us, end_us


def is_within_resolution(cell: WindowCell, events: EntityEvents, resolution_us: int) -> bool:
    """Whether edges moved back by less than the resolution, each by itself, give the served value.

    Merged entries stand at the time of their newest event, so an edge that cuts one moves the
    events before it: into the window at its begin, out of it at its end. No entry stands after the
    row itself, so the end of a window without delay is exact.
    """
    begin_us, end_us = cell.edges_us
    # Times are whole microseconds.
    most_us = resolution_us - 1
    starts = _cuts(events.time_us, begin_us, most_us)
    for end in _cuts(events.time_us, end_us, most_us if cell.delay_us else 0).tolist():
        found = _of_runs(cell.kind, events.values, starts, end)
        if equal(np.full(len(starts), cell.served), found).any():
            return True
    return False


def _cuts(time_us: Ints, edge_us: int, most_us: int) -> Ints:
    """How many events lie at or before the edge, where it may be moved back by so much."""
    low, high = np.searchsorted(time_us, [edge_us - most_us, edge_us], side="right").tolist()
    inner = np.arange(low + 1, high)
    # Events of one time are never parted.
    parted = inner[time_us[inner - 1] < time_us[inner]]
    return np.unique(np.concatenate([[low], parted, [high]]))


def is_without_late_events(cell: WindowCell, events: EntityEvents) -> bool:
    """Whether the window gives the served value without some of the events that may have come late.

    All choices of them are tried where they are few, else those without the last so many.
    """
    start, end = np.searchsorted(events.time_us, cell.edges_us, side="right").tolist()
    unseen = np.flatnonzero(events.maybe_unseen[start:end])
    served = np.array([cell.served])
    for left_out in _choices(unseen):
        is_kept = np.ones(end - start, dtype=bool)
        is_kept[left_out] = False
        kept = None if events.values is None else events.values[start:end][is_kept]
        found = _of_runs(cell.kind, kept, np.zeros(1, np.int64), int(is_kept.sum()))
        if equal(served, found).all():
            return True
    return False


def _choices(unseen: Ints) -> Iterator[Ints]:
    if len(unseen) > _MAX_FREE_EVENTS:
        for number in range(1, len(unseen) + 1):
            yield unseen[-number:]
        return
    for number in range(1, len(unseen) + 1):
        for some in itertools.combinations(unseen.tolist(), number):
            yield np.array(some, dtype=np.int64)


def _of_runs(kind: Kind, values: Floats | None, starts: Ints, end: int) -> Floats:
    """Aggregate the runs [start, end), by the rules of `windows.Aggregation`; NaN: null."""
    starts = np.minimum(starts, end)
    if values is None:
        return (end - starts).astype(np.float64)
    first = int(starts[0])
    part = values[first:end]
    is_value = ~np.isnan(part)

    def from_each(summed: Floats) -> Floats:
        """Sums from each start to the end."""
        back = np.concatenate([np.cumsum(summed[::-1])[::-1], [0.0]])
        return back[starts - first]

    count = from_each(is_value.astype(np.float64))
    filled = np.where(is_value, part, 0.0)
    if kind == "count":
        return count
    if kind == "sum":
        return from_each(filled)
    at_least_one = np.maximum(count, 1)
    if kind == "share":
        return from_each((filled != 0).astype(np.float64)) / at_least_one
    with np.errstate(invalid="ignore"):
        if kind == "mean":
            return np.where(count > 0, from_each(filled) / at_least_one, np.nan)
        if kind == "std":
            centre = filled.sum() / max(is_value.sum(), 1)
            deviations = np.where(is_value, part - centre, 0.0)
            squares = from_each(deviations**2) - from_each(deviations) ** 2 / at_least_one
            variance = np.maximum(squares, 0) / np.maximum(count - 1, 1)
            return np.where(count > 1, np.sqrt(variance), np.nan)
    if kind in ("min", "max"):
        pick = np.fmin if kind == "min" else np.fmax
        back = np.concatenate([pick.accumulate(part[::-1])[::-1], [np.nan]])
        return back[starts - first]
    # What is left is `last`: the newest value, if it is in the run.
    newest = part[np.flatnonzero(is_value)[-1]] if is_value.any() else np.nan
    return np.where(count > 0, newest, np.nan)
