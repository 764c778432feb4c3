"""The point-in-time join spread over many tasks: see `join_pieces` for what each of them does."""

import itertools
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from penstock.features.join_pieces import (
    Piece,
    assemble,
    join_bucket,
    split_labels,
    split_source,
)
from penstock.features.point_in_time import JoinPlan
from penstock.locks import private_folder
from penstock.progress import Progress, silent

ROWS_PER_CHUNK = 1 << 20
Sink = Callable[[int, pl.DataFrame], Any]
"""Takes a finished chunk where it was made: its number and its rows; gives what to report."""
_Call = Mapping[str, Any]


class RunTasks(Protocol):
    """Runs calls of one function and gives their results in the order of the calls."""

    def __call__(self, function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
        """Start at once; results are waited for as they are taken."""
        ...


def run_here(function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
    """Run the calls in this process, one after the other."""
    return (function(**call) for call in calls)


@dataclass(frozen=True, kw_only=True)
class RunOnRay:
    """Runs calls as Ray tasks, so many at a time; a task whose worker dies is run again."""

    max_in_flight: int
    max_retries: int = 3
    num_cpus: int = 1
    """Of each task, and so its threads."""

    def __call__(self, function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
        """Run the calls on the Ray that this process is connected to.

        Who takes no further result and closes the iterator ends what still runs.
        """
        import ray

        task = ray.remote(_call).options(num_cpus=self.num_cpus, max_retries=self.max_retries)
        waiting: dict[Any, int] = {}
        done: dict[int, Any] = {}
        numbered = iter(enumerate(calls))
        turn = 0
        try:
            while turn < len(calls):
                for number, call in itertools.islice(numbered, self.max_in_flight - len(waiting)):
                    waiting[task.remote(function, call)] = number
                ready, _ = ray.wait(list(waiting), num_returns=1)
                done[waiting.pop(ready[0])] = ray.get(ready[0])
                while turn in done:
                    yield done.pop(turn)
                    turn += 1
        finally:
            for reference in waiting if ray.is_initialized() else ():
                ray.cancel(reference)


def _call(function: Callable[..., Any], call: _Call) -> Any:
    return function(**call)


def runner(*, num_cpus: int = 1) -> RunTasks:
    """Where to run tasks of so many CPUs: on the Ray of this process, else in it."""
    ray = sys.modules.get("ray")
    if ray is None or not ray.is_initialized():
        return run_here
    if len([node for node in ray.nodes() if node["Alive"]]) > 1:
        cores = int(ray.cluster_resources().get("CPU", 1))
    else:
        # A Ray on one machine has more slots than cores, so that nothing starves.
        cores = os.cpu_count() or 1
    return RunOnRay(max_in_flight=max(cores // num_cpus, 1), num_cpus=num_cpus)


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
    views = range(len(plan.views))

    def step(name: str, function: Callable[..., Any], calls: Sequence[_Call]) -> Iterator[Any]:
        progress(name, 0, len(calls), unit="tasks")
        for number, result in enumerate(run(function, calls), start=1):
            progress(name, number, len(calls), unit="tasks")
            yield result

    with private_folder(scratch, what="the scratch of a join") as folder:
        labels = list(
            step(
                "split labels",
                partial(split_labels, plan, num_buckets=num_buckets),
                [
                    {"chunk": chunk, "out": [folder / f"labels-{v}-{n}.arrow" for v in views]}
                    for n, chunk in enumerate(chunks)
                ],
            )
        )
        parts = [(v, part) for v in views for part in _parts(plan.views[v].frame, rows_per_chunk)]
        split = step(
            "split features",
            partial(split_source, plan, num_buckets=num_buckets),
            [
                {"view": v, "chunk": part, "out": folder / f"source-{v}-{n}.arrow"}
                for n, (v, part) in enumerate(parts)
            ],
        )
        source = [(v, chunk) for (v, _), chunk in zip(parts, split, strict=True)]
        buckets = [(v, bucket) for v in views for bucket in range(num_buckets)]
        joined = step(
            "join",
            partial(join_bucket, plan),
            [
                {
                    "view": v,
                    "labels": [chunk[v].bucket(bucket) for chunk in labels],
                    "source": [chunk.bucket(bucket) for view, chunk in source if view == v],
                    "out": folder / f"joined-{v}-{bucket}.arrow",
                }
                for v, bucket in buckets
            ],
        )
        found: list[list[list[Piece]]] = [[] for _ in views]
        for (v, _), pieces in zip(buckets, joined, strict=True):
            found[v].append(pieces)
        yield from step(
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
