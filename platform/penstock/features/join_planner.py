"""Which way a point-in-time join takes: one task, or many with the entities in buckets."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal

import polars as pl

from penstock.features.point_in_time import ViewSide
from penstock.records import Record

# Beside its rows each side needs keys, times and row numbers as arrays while it is searched.
_SEARCH_BYTES = 64
# The rows as they were read, and as they are gathered for the labels.
_COPIES = 2
# A bucket's share of the budget: several are joined beside each other, on one machine perhaps.
_BUCKETS_AT_ONCE = 2
MIN_BUCKETS = 4
# Every bucket is a task and a file; far beyond this they cost more than they save.
MAX_BUCKETS = 1024
_VALUE_BYTES = 8
_TEXT_BYTES = 24


class SideSize(Record):
    """How much one side of a join holds."""

    name: str
    num_rows: int
    row_bytes: int
    """Of the columns that the join reads."""


class JoinPath(Record):
    """The way that was chosen, and why."""

    kind: Literal["one task", "distributed"]
    reason: str
    estimated_bytes: int
    budget_bytes: int
    num_buckets: int
    """1 for one task."""


def row_bytes(dtypes: Iterable[pl.DataType]) -> int:
    """About what one row of these columns takes; a text counts as a short one."""
    return sum(_TEXT_BYTES if dtype == pl.String else _VALUE_BYTES for dtype in dtypes)


def side_size(view: ViewSide) -> SideSize:
    """Measure a view: counts its rows, which files know without being read."""
    schema = view.frame.collect_schema()
    times = [view.event_time, *([view.created_time] if view.created_time else [])]
    columns = [*view.source_keys, *times, *view.features.values()]
    return SideSize(
        name=view.name,
        num_rows=view.frame.select(pl.len()).collect().item(),
        row_bytes=row_bytes(schema[name] for name in columns),
    )


def choose_path(labels: SideSize, views: Sequence[SideSize], *, budget_bytes: int) -> JoinPath:
    """Choose one task where its estimated memory is within the budget.

    Seconds of fixed cost buy nothing for an input that fits; one that does not fit is cut, by time
    or by entity, into pieces that do.

    Args:
        labels: the label rows, with all their columns.
        views: the rows of each view.
        budget_bytes: what one process may take.
    """
    per_label = sum(view.row_bytes + _SEARCH_BYTES for view in views)
    estimated_bytes = labels.num_rows * (labels.row_bytes + per_label) + sum(
        view.num_rows * (_COPIES * view.row_bytes + _SEARCH_BYTES) for view in views
    )
    size = (
        f"{labels.num_rows:,} label rows and {sum(v.num_rows for v in views):,} rows of "
        f"{len(views)} views need about {_gib(estimated_bytes)}"
    )
    if estimated_bytes <= budget_bytes:
        return JoinPath(
            kind="one task",
            reason=f"{size}, within the budget of {_gib(budget_bytes)}",
            estimated_bytes=estimated_bytes,
            budget_bytes=budget_bytes,
            num_buckets=1,
        )
    wanted = math.ceil(_BUCKETS_AT_ONCE * estimated_bytes / budget_bytes)
    num_buckets = min(max(MIN_BUCKETS, wanted), MAX_BUCKETS)
    return JoinPath(
        kind="distributed",
        reason=f"{size}, over the budget of {_gib(budget_bytes)}: "
        f"by stretches of time where rows lie in that order, else by entity in {num_buckets} "
        "buckets",
        estimated_bytes=estimated_bytes,
        budget_bytes=budget_bytes,
        num_buckets=num_buckets,
    )


def num_buckets_for(rows: SideSize, *, budget_bytes: int) -> int:
    """Into how many buckets of entities the rows are cut so that one fits; 1: all of them fit."""
    estimated_bytes = rows.num_rows * (_COPIES * rows.row_bytes + _SEARCH_BYTES)
    if estimated_bytes <= budget_bytes:
        return 1
    wanted = math.ceil(_BUCKETS_AT_ONCE * estimated_bytes / budget_bytes)
    return min(max(MIN_BUCKETS, wanted), MAX_BUCKETS)


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / (1 << 30):.2f} GiB"
