"""The point-in-time join in stretches of time, for labels and views that lie about in their order.

    time_spans         which times runs of rows have
    stretches_of       whether the chunks of labels are stretches of time, and which rows they see
    split_newest       a run of a view's rows -> each entity's newest before every stretch
    carry              one view's newest rows, carried from stretch to stretch
    join_stretch       a chunk of labels with the rows of its own time and those carried into it

Of what was before its stretch a label sees each entity's newest row at most, so nothing goes into
buckets, and the only rows written on the way are those carried. Every step may be repeated: a
worker that dies costs its own.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from penstock.features.as_of import last_of_each
from penstock.features.join_columns import ticks, ticks_of
from penstock.features.join_pieces import Piece, SplitChunk, write_arrow
from penstock.features.point_in_time import (
    CREATED,
    TIME,
    JoinPlan,
    ViewSide,
    execute_in_one_task,
    label_time,
    source_rows,
)

# A stretch with more rows of a view than that would not fit beside the others.
_MOST_CHUNKS_PER_STRETCH = 4
_ROW = "__row"


@dataclass(frozen=True)
class Span:
    """The times of a run of rows, in the ticks of the join; both None: no row has one."""

    first: int | None
    last: int | None
    num_rows: int


@dataclass(frozen=True, kw_only=True)
class Stretches:
    """Chunks of labels as stretches of time, in order of their first moments."""

    order: tuple[int, ...]
    """The chunks' numbers; chunks without any time are left out."""
    firsts: tuple[int, ...]
    lasts: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class Part:
    """What `split_newest` found in a run of a view's rows."""

    newest: SplitChunk
    """By the stretch that begins next after the row."""
    seen: dict[int, tuple[int, int]]
    """By stretch, where its first own row lies and how many rows there are up to its last one."""
    is_sorted: bool
    """Else there are others among the seen."""


def time_spans(plan: JoinPlan, *, view: int | None, chunks: Sequence[pl.LazyFrame]) -> list[Span]:
    """Read the times of runs of rows: of a view, or of labels."""
    time = label_time(plan) if view is None else _time_of(plan.views[view], plan)
    asked = (time.min().alias("first"), time.max().alias("last"), pl.len().alias("num_rows"))
    return [Span(*chunk.select(asked).collect().row(0)) for chunk in chunks]


def stretches_of(
    plan: JoinPlan,
    labels: Sequence[Span],
    sources: Sequence[Sequence[Span]],
    *,
    rows_per_chunk: int,
    num_buckets: int,
) -> tuple[Stretches | None, str]:
    """Decide whether to join by stretches of time; None: no. Says why.

    Args:
        plan: the checked join.
        labels: each chunk's times.
        sources: for each view the times of its runs of rows.
        rows_per_chunk: about how many rows a chunk has.
        num_buckets: the buckets that there would be otherwise: a stretch may hold what one would.
    """
    if plan.known_at_label_time and any(view.created_time for view in plan.views):
        return None, "a row may be known long after its event, so none is the newest for all labels"
    timed = [(n, s.first, s.last) for n, s in enumerate(labels) if s.first is not None]
    if not timed:
        return None, "no label has a time"
    for view, runs in zip(plan.views, sources, strict=True):
        num_rows = sum(run.num_rows for run in runs)
        most = max(_MOST_CHUNKS_PER_STRETCH * rows_per_chunk, num_rows // num_buckets)
        for number, first, last in timed:
            beside = sum(run.num_rows for run in runs if _meet(run, first, last))
            if beside > most:
                return None, (
                    f"the times of label chunk {number} meet {beside:,} rows of {view.name}, more "
                    f"than {most:,}: they are not in order of time"
                )
    timed.sort(key=lambda each: (each[1], each[0]))
    return Stretches(
        order=tuple(number for number, _, _ in timed),
        firsts=tuple(int(first or 0) for _, first, _ in timed),
        lasts=tuple(int(last or 0) for _, _, last in timed),
    ), "labels and views lie in order of time"


def _meet(run: Span, first: int | None, last: int | None) -> bool:
    if run.first is None or run.last is None or first is None or last is None:
        return False
    return run.first <= last and first <= run.last


def split_newest(
    plan: JoinPlan, stretches: Stretches, *, view: int, chunk: pl.LazyFrame, out: Path
) -> Part:
    """Leave each entity's newest rows before every stretch, and find the stretches' own rows.

    Args:
        plan: the checked join.
        stretches: the labels' chunks.
        view: the view's number.
        chunk: a run of its rows.
        out: the file to leave, with the view's own columns.
    """
    side = plan.views[view]
    rows = chunk.select(_columns(side)).collect()
    known = _keys_and_times(side, plan, rows)
    ordered = _in_order(known)
    times = ordered[TIME].to_numpy()
    ends = np.searchsorted(times, stretches.firsts, side="left")
    begins = np.maximum(
        np.concatenate([[0], ends[:-1]]),
        np.searchsorted(times, [_oldest(side, plan, first) for first in stretches.firsts]),
    )
    newest = [
        _newest(ordered.slice(begin, max(end - begin, 0)), _key_names(side))[_ROW]
        for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)
    ]
    write_arrow(rows[pl.concat(newest)], out)
    starts = np.cumsum([0, *(places.len() for places in newest)])
    is_sorted = known[TIME].is_sorted()
    places, seen = known[_ROW], {}
    for number, last in enumerate(stretches.lasts):
        begin, end = int(ends[number]), int(np.searchsorted(times, last, side="right"))
        if begin < end:
            first, final = (begin, end - 1) if is_sorted else (0, -1)
            seen[number] = (places[first], places[final] + 1 - places[first])
    return Part(newest=SplitChunk(str(out), tuple(starts.tolist())), seen=seen, is_sorted=is_sorted)


def carry(
    plan: JoinPlan,
    stretches: Stretches,
    *,
    view: int,
    newest: Sequence[SplitChunk],
    out: Sequence[Path],
    most_rows: int,
) -> list[Piece] | None:
    """Carry a view's newest rows from stretch to stretch.

    Args:
        plan: the checked join.
        stretches: the labels' chunks.
        view: the view's number.
        newest: what `split_newest` left of its rows, in the table's order.
        out: the file to leave for each stretch, with the view's own columns.
        most_rows: how many all files together may have.

    Returns:
        For each stretch the newest rows before it; None: they would be more than `most_rows`.
    """
    side = plan.views[view]
    carried = side.frame.select(_columns(side)).head(0).collect()
    num_rows, pieces = 0, []
    for number, (first, path) in enumerate(zip(stretches.firsts, out, strict=True)):
        # What was carried is older than all that is new.
        fresh = [_scan(split.bucket(number)) for split in newest]
        rows = pl.concat([carried.lazy(), *fresh]).collect()
        known = _keys_and_times(side, plan, rows)
        known = known.filter(pl.col(TIME) >= _oldest(side, plan, first))
        carried = rows[_newest(_in_order(known), _key_names(side))[_ROW]]
        num_rows += carried.height
        if num_rows > most_rows:
            return None
        write_arrow(carried, path)
        pieces.append(Piece(str(path), 0, carried.height))
    return pieces


def sources_of(
    plan: JoinPlan,
    stretches: Stretches,
    number: int,
    *,
    view: int,
    carried: Piece,
    parts: Sequence[tuple[pl.LazyFrame, Part]],
) -> list[pl.LazyFrame]:
    """Give the frames of a view's rows that a stretch sees, the oldest first.

    Args:
        plan: the checked join.
        stretches: the labels' chunks.
        number: which stretch.
        view: the view's number.
        carried: its newest rows before the stretch.
        parts: its runs of rows, in the table's order, and what was found in each.
    """
    side = plan.views[view]
    own = _time_of(side, plan).is_between(stretches.firsts[number], stretches.lasts[number])
    frames = [_scan(carried)]
    for rows, part in parts:
        if number not in part.seen:
            continue
        start, length = part.seen[number]
        seen = rows.slice(start, length).select(_columns(side))
        # An older row that is not the newest would stand behind the one that is.
        frames.append(seen if part.is_sorted else seen.filter(own))
    return frames


def join_stretch(
    plan: JoinPlan,
    sink: Callable[[int, pl.DataFrame], Any],
    *,
    number: int,
    chunk: pl.LazyFrame,
    sources: Sequence[Sequence[pl.LazyFrame]],
) -> Any:
    """Join a chunk of labels with the rows that its stretch sees, and hand it to the sink.

    Args:
        plan: the checked join.
        sink: what becomes of the joined rows.
        number: the chunk's.
        chunk: the label rows.
        sources: for each view the frames of `sources_of`; none: the labels have no times.
    """
    views = tuple(
        replace(view, frame=pl.concat(frames) if frames else view.frame.head(0))
        for view, frames in zip(plan.views, sources, strict=True)
    )
    return sink(number, execute_in_one_task(replace(plan, views=views), chunk.collect()))


def _scan(piece: Piece) -> pl.LazyFrame:
    return pl.scan_ipc(piece.path).slice(piece.start, piece.length)


def _time_of(side: ViewSide, plan: JoinPlan) -> pl.Expr:
    return ticks(side.event_time, side.frame.collect_schema()[side.event_time], plan.unit)


def _columns(side: ViewSide) -> list[str]:
    created = [side.created_time] if side.created_time else []
    needed = [*side.source_keys, side.event_time, *created, *side.features.values()]
    return list(dict.fromkeys(needed))


def _key_names(side: ViewSide) -> list[str]:
    return [f"__key{i}" for i in range(len(side.join_keys))]


def _keys_and_times(side: ViewSide, plan: JoinPlan, rows: pl.DataFrame) -> pl.DataFrame:
    """The rows that can match, by keys, times and their places among all."""
    places = replace(side, features={_ROW: _ROW})
    return source_rows(places, plan, rows.with_row_index(_ROW).lazy()).collect()


def _in_order(known: pl.DataFrame) -> pl.DataFrame:
    """The rows by rule 3 of the join: of those alike the last one wins."""
    times = [name for name in (TIME, CREATED) if name in known.columns]
    if len(times) == 1 and known[TIME].is_sorted():
        return known
    return known.sort(times, nulls_last=False, maintain_order=True)


def _newest(ordered: pl.DataFrame, keys: Sequence[str]) -> pl.DataFrame:
    """Of the rows with the same keys the last one, in order of time."""
    return ordered[last_of_each(ordered.select(keys))] if keys else ordered.tail(1)


def _oldest(side: ViewSide, plan: JoinPlan, first: int) -> int:
    """From when on a row may still be valid at `first`: a TTL may reach back beyond 64 bits."""
    ttl = ticks_of(side.ttl, plan.unit)
    return -(2**63) if ttl is None else max(first - ttl, -(2**63))
