"""Sliding-window features: declared once, computed for every event in one pass over sorted events.

The window of an event at time t is (t - delay - width, t - delay]: open at its old end, closed at
its new one. So events of one entity at the same time all belong to each other's window, and a
delay of a label's lateness keeps everything out that was not known yet.

How: events are sorted by (entity, time); a window is then one run of rows, found by binary search
for all events at once; sums come from prefix sums that lose nothing (see prefix_sums), minima and
maxima from a sparse table built one level at a time.
"""

import itertools
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from penstock.errors import DataError, DeclarationError
from penstock.features.join_columns import MICROSECOND, TimeUnit
from penstock.features.prefix_sums import Rows, SortedColumn

Kind: TypeAlias = Literal["count", "sum", "mean", "min", "max", "std", "share", "last"]
_KINDS: tuple[Kind, ...] = ("count", "sum", "mean", "min", "max", "std", "share", "last")
# Their values are among the column's own, and so of its type.
_OF_THE_COLUMN: frozenset[Kind] = frozenset({"min", "max", "last"})
_NUM_THREADS = 4
# One window's numbers, and which of them stand for a null (None: none of them).
_Values: TypeAlias = tuple[NDArray[Any], NDArray[np.bool_] | None]


@dataclass(frozen=True, kw_only=True)
class Aggregation:
    """One number to take from each window.

    `count` without a column counts events; with one, its non-null values. Every other kind skips
    nulls (a NaN is a null), as if those events had no value. Over no value at all: count, sum and
    share are 0; mean, min, max, std and last are null. `std` is the sample's (n - 1), null below 2
    values. `share` is the part of the values that are true (non-zero). `last` is the newest value;
    of several at the same time, the one whose row stands last in the input.
    """

    kind: Kind
    name: str
    """The feature's name; `{window}` in it becomes the window's label."""
    column: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise DeclarationError(
                f"the aggregation {self.name!r} has the kind {self.kind!r}",
                allowed=", ".join(_KINDS),
            )
        if self.column is None and self.kind != "count":
            raise DeclarationError(
                f"the aggregation {self.name!r} ({self.kind}) names no column",
                next_step="give column=…; only count can do without",
            )


@dataclass(frozen=True, kw_only=True)
class Windows:
    """Which windows to compute over which events: widths x aggregations, for one entity."""

    entity: tuple[str, ...]
    event_time: str
    widths: Mapping[str, timedelta]
    """The label that `{window}` stands for -> how long the window is."""
    aggregations: tuple[Aggregation, ...]
    delay: timedelta = timedelta(0)
    """How far every window is moved back: what an event tells is known only so much later."""

    def __post_init__(self) -> None:
        if not self.entity or not self.widths or not self.aggregations:
            raise DeclarationError(
                "windows need at least one entity column, one width and one aggregation"
            )
        for label, width in self.widths.items():
            if width <= timedelta(0):
                raise DeclarationError(
                    f"the window {label!r} is {width} wide", allowed="a width above zero"
                )
        if self.delay < timedelta(0):
            raise DeclarationError(
                f"the windows' delay is {self.delay}", allowed="zero or more: no look ahead"
            )
        names = [*self.entity, self.event_time, *self.feature_names()]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DeclarationError(
                f"the windows would write {', '.join(twice)} more than once",
                next_step="give each aggregation its own name, with {window} in it",
            )

    def feature_names(self) -> tuple[str, ...]:
        """The computed columns, in their order: for each width, each aggregation."""
        return tuple(
            aggregation.name.replace("{window}", label)
            for label in self.widths
            for aggregation in self.aggregations
        )

    def source_columns(self) -> tuple[str, ...]:
        """The columns that events must have."""
        columns = [a.column for a in self.aggregations if a.column is not None]
        return tuple(dict.fromkeys([*self.entity, self.event_time, *columns]))


def compute(events: pl.DataFrame, windows: Windows) -> pl.DataFrame:
    """Compute every window feature as of every event.

    Returns:
        One row an event, in the order of the input: the entity columns, the event time, then
        `windows.feature_names()`. Counts are Int64; mean, std and share Float64; a sum is Int64
        for whole numbers and Float64 otherwise; min, max and last keep the column's type. An event
        whose entity or time is null has null features and belongs to nobody's window.

    Raises:
        DataError: a column is missing, holds no numbers, or holds an infinite value.
    """
    _check_columns(events, windows)
    keys = [pl.col(name) for name in (*windows.entity, windows.event_time)]
    head = events.select(keys)
    complete = head.select(pl.all_horizontal(pl.all().is_not_null())).to_series()
    if complete.all():
        return head.hstack(_compute_complete(events, windows))
    # Incomplete rows take no part; a left join by row number gives them back as nulls.
    number = pl.Series("row", np.flatnonzero(complete.to_numpy()), pl.Int64)
    features = _compute_complete(events.filter(complete), windows)
    spread = pl.select(row=pl.int_range(events.height, dtype=pl.Int64)).join(
        pl.DataFrame([number, *features]), on="row", how="left", maintain_order="left"
    )
    return head.hstack(spread.drop("row").get_columns())


def _check_columns(events: pl.DataFrame, windows: Windows) -> None:
    for name in windows.source_columns():
        if name not in events.columns:
            raise DataError(
                f"the events have no column {name!r}", allowed=", ".join(events.columns)
            )
    if not isinstance(events.schema[windows.event_time], pl.Datetime | pl.Date):
        raise DataError(
            f"{windows.event_time!r} is {events.schema[windows.event_time]}",
            allowed="a timestamp or a date",
        )
    for aggregation in windows.aggregations:
        if aggregation.column is None or aggregation.kind == "count":
            continue
        dtype = events.schema[aggregation.column]
        if not (dtype.is_integer() or dtype.is_float() or dtype == pl.Boolean):
            raise DataError(
                f"{aggregation.column!r} is {dtype}; {aggregation.kind} cannot take it",
                allowed="integers, floats or booleans",
            )


def _compute_complete(events: pl.DataFrame, windows: Windows) -> list[pl.Series]:
    """The feature columns of events that all have an entity and a time, in input order."""
    height = events.height
    order, group, time, unit = _sort(events, windows)
    # Where each row came from -> where it stands now; turns results back to the input's order.
    place = np.empty(height, np.int64)
    place[order] = np.arange(height)
    columns = {
        name: SortedColumn(events[name], order)
        for name in dict.fromkeys(a.column for a in windows.aggregations if a.column is not None)
    }
    delay = windows.delay // MICROSECOND * unit
    offsets = [delay + width // MICROSECOND * unit for width in windows.widths.values()]
    edges = _Edges(group, time, max(offsets))
    end = edges.cut(delay)
    # numpy lets go of the interpreter while it searches and gathers, so windows run side by side.
    with ThreadPoolExecutor(min(len(offsets), _NUM_THREADS)) as pool:
        starts = list(pool.map(edges.cut, offsets))
        extremes = _extremes(windows, columns, starts, end)

        def one_window(window: int) -> list[pl.Series]:
            out = []
            for position, aggregation in enumerate(windows.aggregations):
                found = extremes.get((window, position))
                if found is None:
                    found = _aggregate(aggregation, columns, starts[window], end)
                series = _in_input_order(*found, place)
                if aggregation.kind in _OF_THE_COLUMN:
                    series = series.cast(columns[str(aggregation.column)].dtype)
                out.append(series)
            return out

        features = itertools.chain.from_iterable(pool.map(one_window, range(len(starts))))
        return [s.alias(n) for s, n in zip(features, windows.feature_names(), strict=True)]


def _in_input_order(
    values: NDArray[Any], empty: NDArray[np.bool_] | None, place: Rows
) -> pl.Series:
    series = pl.Series(values[place])
    if empty is None or not empty.any():
        return series
    return pl.select(pl.when(pl.Series(~empty[place])).then(series)).to_series()


def _sort(events: pl.DataFrame, windows: Windows) -> tuple[Rows, Rows, Rows, int]:
    """The order by (entity, time); in that order the entity's rank and the time; units in 1 us."""
    dtype = events.schema[windows.event_time]
    zone = dtype.time_zone if isinstance(dtype, pl.Datetime) else None
    unit: TimeUnit = "ns" if isinstance(dtype, pl.Datetime) and dtype.time_unit == "ns" else "us"
    time = events[windows.event_time].cast(pl.Datetime(unit, zone)).to_physical().to_numpy()
    codes = _codes(events.select(windows.entity))
    if bool((time[1:] >= time[:-1]).all()):
        order = _stable_order(codes)
    else:
        by_time = np.argsort(time, kind="stable")
        order = by_time[_stable_order(codes[by_time])]
    codes = codes[order]
    group = np.zeros(len(codes), np.int64)
    np.cumsum(codes[1:] != codes[:-1], out=group[1:])
    return order, group, time[order], 1000 if unit == "ns" else 1


def _codes(entities: pl.DataFrame) -> NDArray[np.uint32]:
    """A number for each row's entity: the same for the same one."""
    first = entities.to_series()
    if entities.width == 1 and first.dtype.is_integer() and len(first):
        low, high = first.min(), first.max()
        if isinstance(low, int) and isinstance(high, int) and high - low < 2**32:
            codes: NDArray[np.uint32] = (first.to_numpy() - low).astype(np.uint32)
            return codes
    ranked = entities.select(pl.struct(pl.all()) if entities.width > 1 else pl.first())
    return ranked.to_series().rank("dense").cast(pl.UInt32).to_numpy()


def _stable_order(codes: NDArray[np.uint32]) -> Rows:
    """The stable order by code. numpy sorts 16-bit numbers by radix, in linear time: do halves."""
    low = codes.astype(np.uint16)
    order = np.argsort(low, kind="stable")
    if len(codes) and int(codes.max()) >> 16:
        high = (codes >> 16).astype(np.uint16)
        order = order[np.argsort(high[order], kind="stable")]
    return order


class _Edges:
    """Finds the edges of windows for all events at once.

    One rising key (entity, time) lets one binary search serve all entities. Where entities x time
    span does not fit in 63 bits, blocks of entities take turns.
    """

    def __init__(self, group: Rows, time: Rows, largest_offset: int) -> None:
        self._height = len(time)
        self._blocks: list[tuple[int, Rows]] = []
        if not self._height:
            return
        first = int(time.min())
        # Two neighbours' keys are at least the largest offset apart, so that no window reaches
        # back into the entity before.
        span = int(time.max()) - first + largest_offset + 1
        num_groups = max((2**62) // span, 1)
        limits = [0, self._height]
        if int(group[-1]) >= num_groups:
            limits[1:1] = (np.flatnonzero(np.diff(group // num_groups)) + 1).tolist()
        for low, high in itertools.pairwise(limits):
            key = (group[low:high] - group[low]) * span + (time[low:high] - first)
            self._blocks.append((low, key))

    def cut(self, offset: int) -> Rows:
        """For each row: the first row of its entity whose time is above its own less the offset.

        All events with a time <= t - offset stand before it, ties included: as end of a half-open
        run of rows it is the edge of a window.
        """
        cut = np.empty(self._height, np.int64)
        for low, key in self._blocks:
            found = np.searchsorted(key, key - offset, side="right")
            cut[low : low + len(key)] = low + found
        return cut


def _aggregate(
    aggregation: Aggregation, columns: Mapping[str, SortedColumn], start: Rows, end: Rows
) -> _Values:
    if aggregation.column is None:
        return end - start, None
    column = columns[aggregation.column]
    count = column.num_values(start, end)
    if aggregation.kind == "count":
        return count, None
    if aggregation.kind == "sum":
        return column.sum(start, end), None
    if aggregation.kind == "last":
        return column.newest(end), count < 1
    at_least_one = np.maximum(count, 1)
    if aggregation.kind == "share":
        return column.num_true(start, end) / at_least_one, None
    if aggregation.kind == "mean":
        return column.sum(start, end) / at_least_one, count < 1
    return np.sqrt(column.variance(start, end)), count < 2


def _extremes(
    windows: Windows, columns: Mapping[str, SortedColumn], starts: Sequence[Rows], end: Rows
) -> dict[tuple[int, int], _Values]:
    """Minimum and maximum by (window, aggregation): a sparse table, one level held at a time.

    At level k the table holds the extreme of every run of 2**k rows, and answers the windows of
    2**k to 2**(k+1) - 1 rows by two runs that overlap.
    """
    wanted = [(p, a) for p, a in enumerate(windows.aggregations) if a.kind in ("min", "max")]
    out: dict[tuple[int, int], _Values] = {}
    for position, aggregation in wanted:
        column = columns[str(aggregation.column)]
        pick: Any = np.minimum if aggregation.kind == "min" else np.maximum
        table, neutral = _with_neutral(column, aggregation.kind)
        lengths = [end - start for start in starts]
        levels = [np.frexp(length.astype(np.float64))[1] - 1 for length in lengths]
        results = [np.full(len(end), neutral, table.dtype) for _ in starts]
        num_levels = max((int(level.max()) for level in levels if len(level)), default=-1) + 1
        for k in range(num_levels):
            if k > 0:
                table = pick(table[: -(1 << (k - 1))], table[1 << (k - 1) :])
            for start, level, result in zip(starts, levels, results, strict=True):
                rows = np.flatnonzero(level == k)
                result[rows] = pick(table[start[rows]], table[end[rows] - (1 << k)])
        for window, (start, result) in enumerate(zip(starts, results, strict=True)):
            out[window, position] = result, column.num_values(start, end) < 1
    return out


def _with_neutral(column: SortedColumn, kind: Kind) -> tuple[NDArray[Any], Any]:
    """The values with, in place of nulls, one that never wins."""
    if column.is_whole:
        unsigned = column.dtype == pl.UInt64
        kind_of_int = np.uint64 if unsigned else np.int64
        limits = np.iinfo(kind_of_int)
        neutral: Any = limits.max if kind == "min" else limits.min
        wide = column.ordered.cast(pl.UInt64 if unsigned else pl.Int64)
    else:
        neutral = np.inf if kind == "min" else -np.inf
        wide = column.ordered.cast(pl.Float64)
    return wide.fill_null(pl.lit(neutral, wide.dtype)).to_numpy(), neutral
