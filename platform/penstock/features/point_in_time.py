"""Feature values as they were known at each label's time: an as-of join that loses no row.

The rules, which docs/point_in_time.md states at length:

1. Every label row comes back exactly once, in its place; where nothing is valid its features are
   null. Labels may repeat.
2. A source row is valid for a label at time t if its keys equal the label's, its event time is
   <= t and, where the view has a TTL, >= t - TTL. A TTL of None or zero never expires.
3. Of several valid rows the latest event time wins; among equal event times the latest created
   time (null is the oldest); among those the one that stands last in the table.
4. With `known_at_label_time` a row counts only if its created time is <= t too.
5. A null in a key or in a time matches nothing, on either side. Numbers that are equal match,
   whatever their width: 7.0 is 7.
6. A timestamp without a zone is UTC. Precisions may differ; nothing is rounded.

`plan` checks everything that can be wrong before a row is read; `execute_in_one_task` does the
work. A path that spreads a plan over many tasks stands beside the latter.
"""

import itertools
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeAlias

import numpy as np
import polars as pl

from penstock.errors import DataError, DeclarationError
from penstock.features.as_of import last_rows
from penstock.features.join_columns import (
    TimeUnit,
    align_keys,
    finest_unit,
    prune_by_time,
    ticks,
    ticks_of,
)

TIME, CREATED, _ROW = "__time", "__created", "__row"
_NUM_THREADS = 2
_Order: TypeAlias = pl.Series


@dataclass(frozen=True, kw_only=True)
class ViewSide:
    """One feature view as the join sees it: a table of values with its keys, times and TTL."""

    name: str
    frame: pl.LazyFrame
    join_keys: tuple[str, ...]
    """The labels' columns; none: every label sees the same rows."""
    source_keys: tuple[str, ...]
    """The frame's columns, in the same order."""
    event_time: str
    features: Mapping[str, str]
    """The output's column -> the frame's column."""
    created_time: str | None = None
    ttl: timedelta | None = None


@dataclass(frozen=True, kw_only=True)
class JoinPlan:
    """A checked join: what an executor needs to know, and nothing that it must decide."""

    labels: pl.Schema
    """The label rows' columns; the rows themselves may be many, and elsewhere."""
    event_time: str
    views: tuple[ViewSide, ...]
    unit: TimeUnit
    """The unit in which all times of this join compare without rounding."""
    known_at_label_time: bool = False


def join(
    labels: pl.DataFrame | pl.LazyFrame,
    views: Sequence[ViewSide],
    *,
    event_time: str,
    known_at_label_time: bool = False,
) -> pl.DataFrame:
    """Add the views' features to every label row, as of its event time.

    Returns:
        The labels' columns as they are, then each view's features in order; as many rows as
        labels, in the same order.

    Raises:
        DataError: a column is missing, or keys or times are of types that cannot be compared.
        DeclarationError: two columns of the output would have one name.
    """
    frame = labels.lazy().collect()
    checked = plan(
        frame.schema, views, event_time=event_time, known_at_label_time=known_at_label_time
    )
    return execute_in_one_task(checked, frame)


def plan(
    labels: pl.Schema,
    views: Sequence[ViewSide],
    *,
    event_time: str,
    known_at_label_time: bool = False,
) -> JoinPlan:
    """Check the join before a row is read; raises as `join` does."""
    _need("the labels", [event_time], labels.names())
    names = Counter([*labels.names(), *(name for view in views for name in view.features)])
    twice = sorted(name for name, count in names.items() if count > 1)
    if twice:
        raise DeclarationError(
            f"the joined rows would have {', '.join(twice)} more than once",
            next_step="rename the labels' column, or ask for full feature names",
        )
    times = [labels[event_time]]
    for view in views:
        if len(view.join_keys) != len(view.source_keys):
            raise DeclarationError(
                f"the view {view.name!r} joins {len(view.join_keys)} label columns "
                f"with {len(view.source_keys)} of its own"
            )
        _need("the labels", view.join_keys, labels.names())
        schema = view.frame.collect_schema()
        created = [view.created_time] if view.created_time else []
        _need(
            f"the table of the view {view.name!r}",
            [*view.source_keys, view.event_time, *created, *view.features.values()],
            schema.names(),
        )
        for ours, theirs in zip(view.join_keys, view.source_keys, strict=True):
            align_keys(ours, labels[ours], theirs, schema[theirs], view.name)
        times += [schema[name] for name in [view.event_time, *created]]
    return JoinPlan(
        labels=labels,
        event_time=event_time,
        views=tuple(views),
        unit=finest_unit(times),
        known_at_label_time=known_at_label_time,
    )


def _need(what: str, columns: Sequence[str], found: Sequence[str]) -> None:
    for column in columns:
        if column not in found:
            raise DataError(f"{what} have no column {column!r}", allowed=", ".join(found))


def execute_in_one_task(checked: JoinPlan, labels: pl.DataFrame) -> pl.DataFrame:
    """Do the whole join in this process: one search a view, over row numbers only.

    Finding row numbers keeps wide features out of the search; they are gathered once, straight
    into the labels' own order. Memory: the labels, and the needed columns of a few views at a time.
    """
    moments = labels.select(label_time(checked)).to_series()
    by_time, place = _by_time(moments)

    def values_of(view: ViewSide) -> list[pl.Series]:
        source = _read(view, checked, moments)
        rows = _match(view, checked, labels, moments, by_time, source)
        if place is not None:
            rows = rows.gather(place)
        return source.select(pl.col(list(view.features)).gather(rows)).get_columns()

    # numpy and polars let go of the interpreter while they search and gather.
    with ThreadPoolExecutor(_NUM_THREADS) as threads:
        found = list(threads.map(values_of, checked.views))
    return pl.DataFrame([*labels.get_columns(), *itertools.chain.from_iterable(found)])


def _by_time(moments: pl.Series) -> tuple[_Order | None, pl.Series | None]:
    """The labels' order by time without null ones, and where each label stands in it.

    Both None where the labels are in that order already.
    """
    if moments.null_count() == 0 and moments.is_sorted():
        return None, None
    order = moments.arg_sort(nulls_last=True)
    order = order.head(len(moments) - moments.null_count())
    place = np.full(len(moments), -1, np.int64)
    place[order.to_numpy()] = np.arange(len(order))
    where = pl.Series(place)
    if len(order) < len(moments):
        where = pl.select(pl.when(where >= 0).then(where)).to_series()
    return order, where


def _read(view: ViewSide, checked: JoinPlan, moments: pl.Series) -> pl.DataFrame:
    """The view's rows that can matter, in the table's order."""
    schema = view.frame.collect_schema()
    pruned = prune_by_time(
        view.frame, view.event_time, schema[view.event_time], moments, checked.unit, view.ttl
    )
    return source_rows(view, checked, pruned).collect()


def source_rows(view: ViewSide, checked: JoinPlan, frame: pl.LazyFrame) -> pl.LazyFrame:
    """The view's rows as the join reads them: `__key…`, `__time`, `__created`, features.

    Rows that match nothing (rule 5) are left out.
    """
    labels, schema = checked.labels, view.frame.collect_schema()
    keys = [
        align_keys(ours, labels[ours], theirs, schema[theirs], view.name)[1].alias(f"__key{i}")
        for i, (ours, theirs) in enumerate(zip(view.join_keys, view.source_keys, strict=True))
    ]
    times = [ticks(view.event_time, schema[view.event_time], checked.unit).alias(TIME)]
    needed = [TIME, *(f"__key{i}" for i in range(len(keys)))]
    if view.created_time:
        created = ticks(view.created_time, schema[view.created_time], checked.unit)
        times.append(created.alias(CREATED))
        if checked.known_at_label_time:
            needed.append(CREATED)
    features = [pl.col(column).alias(name) for name, column in view.features.items()]
    return frame.select(*keys, *times, *features).drop_nulls(needed)


def _match(
    view: ViewSide,
    checked: JoinPlan,
    labels: pl.DataFrame,
    moments: pl.Series,
    by_time: _Order | None,
    source: pl.DataFrame,
) -> pl.Series:
    """For each label in time order: the number of its source row, or null."""
    keys = [pl.col(f"__key{i}") for i in range(len(view.join_keys))]
    left = labels.select(*label_keys(view, checked.labels), moments.alias(TIME))
    if by_time is not None:
        left = left[by_time]
    return match_rows(
        left,
        source.select(*keys, pl.col(f"^({TIME}|{CREATED})$")),
        ttl=ticks_of(view.ttl, checked.unit),
        known_at_label_time=checked.known_at_label_time,
    )


def label_time(checked: JoinPlan) -> pl.Expr:
    """The labels' event time in the plan's ticks, named `__time`."""
    dtype = checked.labels[checked.event_time]
    return ticks(checked.event_time, dtype, checked.unit).alias(TIME)


def label_keys(view: ViewSide, labels: pl.Schema) -> list[pl.Expr]:
    """The labels' side of the view's keys, named `__key0`, `__key1`, …."""
    schema = view.frame.collect_schema()
    return [
        align_keys(ours, labels[ours], theirs, schema[theirs], view.name)[0].alias(f"__key{i}")
        for i, (ours, theirs) in enumerate(zip(view.join_keys, view.source_keys, strict=True))
    ]


def match_rows(
    left: pl.DataFrame, source: pl.DataFrame, *, ttl: int | None, known_at_label_time: bool
) -> pl.Series:
    """For each label: the number of the source row that the rules choose, or null.

    Args:
        left: `__key…` and `__time`, in time order, without nulls.
        source: `__key…`, `__time` and perhaps `__created`, in the table's order.
        ttl: in the ticks of the times; None: no row expires.
        known_at_label_time: rule 4.
    """
    keys = [name for name in left.columns if name != TIME]
    cut_off = known_at_label_time and CREATED in source.columns
    right = _in_winning_order(source, keys)
    if cut_off:
        right = _by_first_sight(right, keys)
    found = pl.Series(last_rows(left[TIME], left.select(keys), right[TIME], right.select(keys)))
    rows = right[_ROW].gather(pl.select(pl.when(found >= 0).then(found)).to_series())
    if ttl is None:
        return rows
    # The row that wins has the latest event time: if it is too old, every one is.
    fresh = source[TIME].gather(rows) >= left[TIME] - ttl
    return pl.select(pl.when(fresh).then(rows)).to_series()


def _in_winning_order(source: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """The rows' keys, times and numbers, sorted by rule 3: the last valid one wins."""
    times = [name for name in (TIME, CREATED) if name in source.columns]
    right = source.select(*keys, *times).with_row_index(_ROW)
    if len(times) == 1 and right[TIME].is_sorted():
        return right
    return right.sort(times, nulls_last=False, maintain_order=True)


def _by_first_sight(right: pl.DataFrame, keys: list[str]) -> pl.DataFrame:
    """Sorted by when a row can first be seen: the later of its two times.

    Of the rows seen so far the one that stands last by rule 3 wins, which need not be the one
    seen last: each row is given the number of that winner.
    """
    best = pl.col("rank").cum_max()
    seen = (
        right.with_row_index("rank")
        .with_columns(pl.max_horizontal(TIME, CREATED).alias(TIME))
        .sort(TIME, maintain_order=True)
        .with_columns(best.over(keys) if keys else best)
    )
    return seen.with_columns(right[_ROW].gather(seen["rank"]))
