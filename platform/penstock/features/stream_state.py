"""Applies events to the states of their entities, and computes the windows as of the newest event.

Pure, and for all entities of a micro-batch at once. The windows are those of `windows.compute`: as
of an entity's newest event, own event and ties included. As long as an entity has at most
EXACT_ENTRIES events within the widest window they are the same; beyond that their edges may lie
back by less than the stream's resolution, never forward.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from penstock.features.stream_entries import (
    POSITION,
    Decoded,
    Fields,
    Ints,
    Layout,
    decode,
    encode,
    extremes_of,
    merge_cells,
    single_entries,
)
from penstock.features.windows import Aggregation

EXACT_ENTRIES = 1_024
"""Up to so many events of an entity are kept one by one."""


@dataclass(frozen=True, kw_only=True)
class Arrivals:
    """Events of some entities, in any order.

    Attributes:
        owner: the rank of each event's entity; every rank has an event.
        time_us: when each happened.
        values: the source columns.
        partition: where each comes from, by `partition_id`.
        offset: its place there.
        next_offset: the position after it.
    """

    owner: Ints
    time_us: Ints
    values: Mapping[str, pl.Series]
    partition: NDArray[np.uint64]
    offset: Ints
    next_offset: Ints


@dataclass(frozen=True, kw_only=True)
class Applied:
    """What became of the entities, by their ranks.

    Attributes:
        states: their new states.
        newest_us: when the newest event of each happened.
        features: the windows as of then, by `windows.feature_names()`.
        is_new: for each event, whether it was counted now; else it was before.
    """

    states: list[bytes]
    newest_us: Ints
    features: dict[str, pl.Series]
    is_new: NDArray[np.bool_]


def apply(
    layout: Layout,
    states: Sequence[bytes | None],
    arrivals: Arrivals,
    *,
    generation: int,
    floors: Mapping[int, int],
    max_exact: int = EXACT_ENTRIES,
) -> Applied:
    """Count each event once, and compute the windows of every entity.

    Args:
        layout: what entries hold.
        states: the state of each entity as it was stored.
        arrivals: the events.
        generation: states of any other are taken for absent.
        floors: up to where the table has each partition: no event below comes again, so that no
            state needs to remember it.
        max_exact: up to so many entries an entity's events are kept one by one.
    """
    num_owners = len(states)
    stored = decode(layout, states, generation)
    is_new = ~already_applied(stored, arrivals)
    owner, fields = _together(layout, stored, arrivals, is_new, num_owners)
    owner, fields = merge_cells(layout, owner, fields, max_exact=max_exact)
    positions = _new_positions(stored, arrivals, floors)
    return Applied(
        states=encode(layout, num_owners, Decoded(owner, fields, *positions), generation),
        newest_us=_newest(owner, fields["time"], num_owners),
        features=compute(layout, owner, fields, num_owners),
        is_new=is_new,
    )


def already_applied(stored: Decoded, arrivals: Arrivals) -> NDArray[np.bool_]:
    """Which events lie below their entity's position in their partition."""
    places, new_places = _places(stored, arrivals)
    if not len(places):
        return np.zeros(len(new_places), np.bool_)
    order = np.argsort(places)
    at = np.minimum(np.searchsorted(places[order], new_places), len(places) - 1)
    is_known = places[order][at] == new_places
    applied: NDArray[np.bool_] = is_known & (arrivals.offset < stored.positions["next"][order][at])
    return applied


def _places(stored: Decoded, arrivals: Arrivals) -> tuple[Ints, Ints]:
    """A number for each (entity, partition): of the stored positions, and of the events."""
    names = np.concatenate([stored.positions["partition"], arrivals.partition])
    known, number = np.unique(names, return_inverse=True)
    num_stored = len(stored.positions)
    return (
        stored.position_owner * len(known) + number[:num_stored],
        arrivals.owner * len(known) + number[num_stored:],
    )


def _new_positions(
    stored: Decoded, arrivals: Arrivals, floors: Mapping[int, int]
) -> tuple[Ints, NDArray[Any]]:
    """The highest position of each entity in each partition, above what the table has."""
    place = np.concatenate(_places(stored, arrivals))
    owner = np.concatenate([stored.position_owner, arrivals.owner])
    found = np.empty(len(place), POSITION)
    found["partition"] = np.concatenate([stored.positions["partition"], arrivals.partition])
    found["next"] = np.concatenate([stored.positions["next"], arrivals.next_offset])
    order = np.lexsort((found["next"], place, owner))
    place, owner, found = place[order], owner[order], found[order]
    is_last = np.append(place[1:] != place[:-1], np.ones(min(len(place), 1), np.bool_))
    names, number = np.unique(found["partition"], return_inverse=True)
    floor = np.array([floors.get(int(name), -1) for name in names], np.int64)
    keep = is_last & (found["next"] > floor[number])
    return owner[keep], found[keep]


def _together(
    layout: Layout,
    stored: Decoded,
    arrivals: Arrivals,
    is_new: NDArray[np.bool_],
    num_owners: int,
) -> tuple[Ints, Fields]:
    """Stored entries and new events by (entity, time), without what no window reaches any more."""
    owner = np.concatenate([stored.owner, arrivals.owner[is_new]])
    single = single_entries(layout, arrivals.time_us, arrivals.values)
    fields = {
        name: np.concatenate([values, single[name][is_new]])
        for name, values in stored.fields.items()
    }
    newest = _newest(owner, fields["time"], num_owners)
    age = newest[owner] - fields["time"]
    horizon = layout.horizon_us
    rows = np.flatnonzero(age < horizon)
    owner, age = owner[rows], age[rows]
    if num_owners < 2**62 // horizon:
        # Two sorted runs, nearly: one merge for numpy's stable sort.
        order = np.argsort(owner * horizon + (horizon - 1 - age), kind="stable")
    else:
        order = np.lexsort((-age, owner))
    rows = rows[order]
    return owner[order], {name: values[rows] for name, values in fields.items()}


def _newest(owner: Ints, time_us: Ints, num_owners: int) -> Ints:
    newest = np.full(num_owners, np.iinfo(np.int64).min, np.int64)
    np.maximum.at(newest, owner, time_us)
    return newest


def compute(layout: Layout, owner: Ints, fields: Fields, num_owners: int) -> dict[str, pl.Series]:
    """The windows of every entity as of its newest entry, by the features' names.

    Args:
        layout: which windows, and what the entries hold.
        owner: the rank of each entry's entity; entries lie by (entity, time).
        fields: the entries.
        num_owners: how many entities there are; one without entries has empty windows.
    """
    counts = np.bincount(owner, minlength=num_owners)
    start = np.cumsum(counts) - counts
    age = _newest(owner, fields["time"], num_owners)[owner] - fields["time"]

    def cut(offset_us: int) -> Ints:
        """Each entity's first entry that is newer than its newest one less the offset."""
        return start + np.bincount(owner[age >= offset_us], minlength=num_owners)

    end = cut(layout.delay_us)
    windows = [_Window(owner, fields, cut(layout.delay_us + w), end) for w in layout.widths_us]
    features = [
        window.aggregate(aggregation, layout)
        for window in windows
        for aggregation in layout.windows.aggregations
    ]
    return dict(zip(layout.windows.feature_names(), features, strict=True))


class _Window:
    """One window of every entity: a run of its entries."""

    def __init__(self, owner: Ints, fields: Fields, first: Ints, end: Ints) -> None:
        self._owner = owner
        self._fields = fields
        self._first = first
        self._is_full = first < end
        self._bounds = np.stack([first, end], axis=1).ravel()

    def _reduce(self, pick: Any, values: NDArray[Any], empty: Any) -> NDArray[Any]:
        # The value at the end lets a run begin, or end, where the entries do.
        padded = np.append(values, np.array([empty], values.dtype))
        reduced: NDArray[Any] = pick.reduceat(padded, self._bounds)[::2]
        return np.where(self._is_full, reduced, padded[-1])

    def _sum(self, name: str) -> NDArray[Any]:
        values = self._fields[name]
        # Wide enough that the order of the sum does not show in a double.
        return self._reduce(np.add, values.astype(_WIDE[values.dtype.kind]), 0)

    def aggregate(self, aggregation: Aggregation, layout: Layout) -> pl.Series:
        kind, column = aggregation.kind, aggregation.column
        if column is None:
            return pl.Series(self._sum("events"))
        count = self._sum(f"values:{column}")
        if kind == "count":
            return pl.Series(count)
        at_least_one = np.maximum(count, 1)
        if kind == "share":
            return pl.Series(self._sum(f"true:{column}") / at_least_one)
        if kind in ("min", "max"):
            values = self._fields[f"{kind}:{column}"]
            pick = np.minimum if kind == "min" else np.maximum
            neutral = extremes_of(values.dtype)[kind == "min"]
            extreme = _nullable(self._reduce(pick, values, neutral), count < 1)
            return extreme.cast(layout.schema[column])
        if kind == "last":
            has_value = self._fields[f"values:{column}"] > 0
            places = np.where(has_value, np.arange(len(has_value)), 0)
            newest = self._reduce(np.maximum, places, 0)
            values = self._fields[f"last:{column}"][newest]
            return _nullable(values, count < 1).cast(layout.schema[column])
        total = self._sum(f"sum:{column}")
        if kind == "sum":
            return pl.Series(total if layout.is_whole(column) else total.astype(np.float64))
        if kind == "mean":
            return _nullable((total / at_least_one).astype(np.float64), count < 1)
        squares = self._squares(column, total / at_least_one)
        deviation = np.sqrt(np.maximum(squares, 0) / np.maximum(count - 1, 1))
        return _nullable(deviation.astype(np.float64), count < 2)

    def _squares(self, column: str, mean: NDArray[Any]) -> NDArray[Any]:
        count = self._fields[f"values:{column}"].astype(np.longdouble)
        total = self._fields[f"sum:{column}"].astype(np.longdouble)
        deviation = total / np.maximum(count, 1) - mean[self._owner]
        squares = self._fields[f"squares:{column}"] + count * deviation**2
        return self._reduce(np.add, squares, np.longdouble(0))


_WIDE = {"u": np.int64, "i": np.int64, "f": np.longdouble}


def _nullable(values: NDArray[Any], is_null: NDArray[np.bool_]) -> pl.Series:
    series = pl.Series(values)
    return series.set(pl.Series(is_null), None) if is_null.any() else series
