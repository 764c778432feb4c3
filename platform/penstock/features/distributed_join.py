"""The point-in-time join spread over many tasks, by time or by entity.

What each task does stands in `join_stretches` and in `join_pieces`. By time is less work, and is
taken where the rows lie about in order of time; by entity any rows can be joined.
"""

import itertools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from penstock.cluster.tasks import RunTasks
from penstock.features.join_pieces import (
    Piece,
    assemble,
    join_bucket,
    split_labels,
    split_source,
)
from penstock.features.join_stretches import (
    Part,
    Span,
    Stretches,
    carry,
    join_stretch,
    sources_of,
    split_newest,
    stretches_of,
    time_spans,
)
from penstock.features.point_in_time import JoinPlan
from penstock.locks import private_folder
from penstock.progress import Progress, silent

_logger = logging.getLogger(__name__)
ROWS_PER_CHUNK = 1 << 20
# Only one column of each is read.
_RUNS_PER_LOOK = 8
Sink = Callable[[int, pl.DataFrame], Any]
"""Takes a finished chunk where it was made: its number and its rows; gives what to report."""


def execute(
    plan: JoinPlan,
    chunks: Sequence[pl.LazyFrame],
    sink: Sink,
    *,
    num_buckets: int,
    scratch: Path,
    run: RunTasks,
    rows_per_chunk: int = ROWS_PER_CHUNK,
    progress: Progress = silent,
) -> Iterator[Any]:
    """Join every chunk of labels and hand it to the sink; no row passes through this process.

    Args:
        plan: the checked join.
        chunks: the label rows in order; each is read twice, by tasks.
        sink: what becomes of a chunk of joined rows; called by a task.
        num_buckets: into how many parts the entities are cut.
        scratch: a folder that every node shares, for what lies between the steps.
        run: where the tasks run.
        rows_per_chunk: how many rows of a view one task reads.
        progress: hears of each step.

    Yields:
        The sink's answer for each chunk, in the labels' order.
    """
    steps = _Steps(run, progress)
    parts = [_parts(view.frame, rows_per_chunk) for view in plan.views]
    with private_folder(scratch, what="the scratch of a join") as folder:
        stretches, reason = stretches_of(
            plan,
            *_times(plan, chunks, parts, steps),
            rows_per_chunk=rows_per_chunk,
            num_buckets=num_buckets,
        )
        carried = None
        if stretches is not None:
            carried = _carried(plan, stretches, parts, folder, steps, rows_per_chunk)
            reason = reason if carried else "more rows would be carried than are read"
        way = "entity" if carried is None else "time"
        _logger.info("joined by %s: %s", way, reason)
        if stretches is not None and carried is not None:
            yield from _by_time(plan, stretches, carried, chunks, sink, steps)
        else:
            yield from _by_entity(plan, chunks, parts, sink, num_buckets, folder, steps)


@dataclass(frozen=True)
class _Steps:
    """Runs the tasks of a step, and tells of each."""

    run: RunTasks
    progress: Progress

    def __call__(
        self, name: str, function: Callable[..., Any], calls: Sequence[Mapping[str, Any]]
    ) -> Iterator[Any]:
        self.progress(name, 0, len(calls), unit="tasks")
        for number, result in enumerate(self.run(function, calls), start=1):
            self.progress(name, number, len(calls), unit="tasks")
            yield result


def _times(
    plan: JoinPlan,
    chunks: Sequence[pl.LazyFrame],
    parts: Sequence[Sequence[pl.LazyFrame]],
    steps: _Steps,
) -> tuple[list[Span], list[list[Span]]]:
    """Read the times of every chunk of labels, and of every run of each view's rows."""
    sides: list[tuple[int | None, Sequence[pl.LazyFrame]]] = [(None, chunks), *enumerate(parts)]
    calls = [
        {"view": view, "chunks": runs[start : start + _RUNS_PER_LOOK]}
        for view, runs in sides
        for start in range(0, len(runs), _RUNS_PER_LOOK)
    ]
    found = steps("times", partial(time_spans, plan), calls)
    spans = iter([span for several in found for span in several])
    labels, *views = [list(itertools.islice(spans, len(runs))) for _, runs in sides]
    return labels, views


@dataclass(frozen=True)
class _CarriedView:
    """One view's rows, as the stretches of time see them."""

    pieces: Sequence[Piece]
    """By stretch, the newest rows before it."""
    parts: Sequence[tuple[pl.LazyFrame, Part]]


def _carried(
    plan: JoinPlan,
    stretches: Stretches,
    parts: Sequence[Sequence[pl.LazyFrame]],
    folder: Path,
    steps: _Steps,
    rows_per_chunk: int,
) -> list[_CarriedView] | None:
    """Carry every view's newest rows; None: there are too many entities to be carried."""
    views = range(len(parts))
    found = steps(
        "newest features",
        partial(split_newest, plan, stretches),
        [
            {"view": v, "chunk": part, "out": folder / f"newest-{v}-{n}.arrow"}
            for v in views
            for n, part in enumerate(parts[v])
        ],
    )
    split = [list(itertools.islice(found, len(parts[v]))) for v in views]
    carried = list(
        steps(
            "carry",
            partial(carry, plan, stretches),
            [
                {
                    "view": v,
                    "newest": [part.newest for part in split[v]],
                    "out": [folder / f"carried-{v}-{n}.arrow" for n in range(len(stretches.order))],
                    # No more than are read anyhow.
                    "most_rows": rows_per_chunk * max(len(parts[v]), 1),
                }
                for v in views
            ],
        )
    )
    if any(pieces is None for pieces in carried):
        return None
    return [
        _CarriedView(pieces, list(zip(parts[v], split[v], strict=True)))
        for v, pieces in enumerate(carried)
    ]


def _by_time(
    plan: JoinPlan,
    stretches: Stretches,
    views: Sequence[_CarriedView],
    chunks: Sequence[pl.LazyFrame],
    sink: Sink,
    steps: _Steps,
) -> Iterator[Any]:
    """Join each chunk with the rows of its own time and those carried into it."""
    stretch_of = {chunk: stretch for stretch, chunk in enumerate(stretches.order)}

    def sources(chunk: int, v: int) -> list[pl.LazyFrame]:
        if chunk not in stretch_of:
            return []
        number = stretch_of[chunk]
        return sources_of(
            plan,
            stretches,
            number,
            view=v,
            carried=views[v].pieces[number],
            parts=views[v].parts,
        )

    calls = [
        {"number": n, "chunk": chunk, "sources": [sources(n, v) for v in range(len(views))]}
        for n, chunk in enumerate(chunks)
    ]
    yield from steps("join", partial(join_stretch, plan, sink), calls)


def _by_entity(
    plan: JoinPlan,
    chunks: Sequence[pl.LazyFrame],
    parts: Sequence[Sequence[pl.LazyFrame]],
    sink: Sink,
    num_buckets: int,
    folder: Path,
    steps: _Steps,
) -> Iterator[Any]:
    """Cut both sides into buckets of entities, join each bucket, and put the chunks together."""
    views = range(len(plan.views))
    labels = list(
        steps(
            "split labels",
            partial(split_labels, plan, num_buckets=num_buckets),
            [
                {"chunk": chunk, "out": [folder / f"labels-{v}-{n}.arrow" for v in views]}
                for n, chunk in enumerate(chunks)
            ],
        )
    )
    split = steps(
        "split features",
        partial(split_source, plan, num_buckets=num_buckets),
        [
            {"view": v, "chunk": part, "out": folder / f"source-{v}-{n}.arrow"}
            for v in views
            for n, part in enumerate(parts[v])
        ],
    )
    source = [list(itertools.islice(split, len(parts[v]))) for v in views]
    buckets = [(v, bucket) for v in views for bucket in range(num_buckets)]
    joined = steps(
        "join",
        partial(join_bucket, plan),
        [
            {
                "view": v,
                "labels": [chunk[v].bucket(bucket) for chunk in labels],
                "source": [chunk.bucket(bucket) for chunk in source[v]],
                "out": folder / f"joined-{v}-{bucket}.arrow",
            }
            for v, bucket in buckets
        ],
    )
    found: list[list[list[Piece]]] = [[] for _ in views]
    for (v, _), pieces in zip(buckets, joined, strict=True):
        found[v].append(pieces)
    yield from steps(
        "write",
        partial(_finish, plan, sink),
        [
            {"number": n, "chunk": chunk, "pieces": [[b[n] for b in found[v]] for v in views]}
            for n, chunk in enumerate(chunks)
        ],
    )


def _finish(
    plan: JoinPlan,
    sink: Sink,
    *,
    number: int,
    chunk: pl.LazyFrame,
    pieces: Sequence[Sequence[Piece]],
) -> Any:
    return sink(number, assemble(plan, chunk, pieces))


def _parts(frame: pl.LazyFrame, num_rows: int) -> list[pl.LazyFrame]:
    """The frame as slices, which a reader of files finds without reading the others."""
    height = frame.select(pl.len()).collect().item()
    return [frame.slice(start, num_rows) for start in range(0, max(height, 1), num_rows)]
