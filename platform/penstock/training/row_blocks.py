"""Passes over many rows, as many at a time as the cache holds."""

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]
ROWS_PER_BLOCK = 1 << 15
_ROWS_PER_LANE = 64
_MOST_THREADS = 8
ResultT = TypeVar("ResultT")


def blocks(num_rows: int) -> Iterator[slice]:
    """Cut rows into blocks; the rest that fills no lane is a block of its own."""
    whole = num_rows - num_rows % _ROWS_PER_LANE
    for start, end in pairwise([*range(0, whole, ROWS_PER_BLOCK), whole, num_rows]):
        if start < end:
            yield slice(start, end)


def each_block(num_rows: int, work: Callable[[slice], ResultT], *, start: int = 0) -> list[ResultT]:
    """Do the work on each block, as many at a time as there are cores; results in the rows' order.

    numpy lets other threads run while it computes. Rows may start at `start`, a multiple of a
    block's.
    """
    found = [slice(start + rows.start, start + rows.stop) for rows in blocks(num_rows)]
    num_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS, len(found))
    if num_threads <= 1:
        return [work(block) for block in found]
    with ThreadPoolExecutor(num_threads, thread_name_prefix="rows") as threads:
        return list(threads.map(work, found))


def lanes(rows: Array) -> Array:
    """Lay rows end to end, as many as go: numpy is slow on short ones.

    Give [n / k, k F] of [n, F] where k divides n, else the rows as they are.
    """
    if len(rows) % _ROWS_PER_LANE:
        return rows
    return rows.reshape(-1, _ROWS_PER_LANE * rows.shape[1])


def along(lane: Array, of_each: Array) -> Array:
    """Repeat what there is for each column, [F], along a lane's columns."""
    return np.resize(of_each, lane.shape[1])


@dataclass(frozen=True, kw_only=True)
class Moments:
    """What is known of each column from one pass; missing values are left out."""

    counts: npt.NDArray[np.int64]
    """[F]: how many values there are."""
    means: Array
    """[F]; NaN where there is no value, and not finite where one is infinite."""
    deviations: Array
    """[F], of the population; exactly 0 where all values are the same."""


def moments(rows: Array) -> Moments:
    """Take count, mean and deviation of each column of [n, F].

    Each block's sums are taken about one of the column's own values, so that a constant leaves no
    rest, and put together as Chan, Golub and LeVeque do (1979, "Updating Formulae").
    """
    start = _a_value_of_each(rows)
    found = each_block(len(rows), lambda block: _sums(rows[block], start))
    counts, sums, squares = (np.stack(parts) for parts in zip(*found, strict=True))
    with np.errstate(invalid="ignore", divide="ignore"):
        total = counts.sum(axis=0)
        offsets = sums.sum(axis=0) / total
        between = np.where(counts > 0, counts * np.square(sums / counts - offsets), 0.0)
        deviations = np.sqrt((squares + between).sum(axis=0) / total)
    return Moments(counts=total, means=start + offsets, deviations=deviations)


def _a_value_of_each(rows: Array) -> Array:
    first: Array = rows[0].copy()
    for place in np.flatnonzero(np.isnan(first)):
        present = np.flatnonzero(~np.isnan(rows[:, place]))
        first[place] = rows[present[0], place] if len(present) else 0.0
    return first


def _sums(rows: Array, start: Array) -> tuple[npt.NDArray[np.int64], Array, Array]:
    """Count values, add what they differ from `start`, square what they differ from their mean."""
    counts = np.full(rows.shape[1], len(rows))
    laid = lanes(rows)
    absent = None
    # An infinite value, less another or times nothing, is no number: it shows in what comes out.
    with np.errstate(invalid="ignore", divide="ignore"):
        off = laid - along(laid, start)
        sums = _added(off, rows.shape[1])
        if not np.isfinite(sums).all():
            absent = np.isnan(laid)
            counts -= _added(absent, rows.shape[1])
            off[absent] = 0.0
            sums = _added(off, rows.shape[1])
        off -= along(off, sums / counts)
        if absent is not None:
            off[absent] = 0.0
        return counts, sums, _added(np.square(off, out=off), rows.shape[1])


def _added(laid: npt.NDArray[Any], num_columns: int) -> npt.NDArray[Any]:
    """Add up each column of rows that lie in lanes."""
    added: npt.NDArray[Any] = laid.sum(axis=0).reshape(-1, num_columns).sum(axis=0)
    return added
