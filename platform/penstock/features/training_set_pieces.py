"""A training set for whoever cannot hold it: some rows at a time, or some columns of all rows."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.features.training_set import (
    TrainingSet,
    columns_digest,
    damaged,
    files_of,
)

_MOST_THREADS = 8
ResultT = TypeVar("ResultT")


@dataclass(frozen=True, kw_only=True)
class _RowGroup:
    file: Path
    number: int
    """Among those of its file."""
    start: int
    """The number of its first row in the set."""
    num_rows: int


def each_piece(
    training_set: TrainingSet,
    work: Callable[[int, pl.DataFrame], ResultT],
    *,
    columns: Sequence[str] | None = None,
    numbers: npt.NDArray[np.integer] | None = None,
) -> Iterator[ResultT]:
    """Do the work on a row group at a time, on as many at once as there are cores.

    Args:
        training_set: what to read; page checksums are verified.
        work: takes the number of a piece's first row, and its rows; runs on any thread.
        columns: which to read; None: all.
        numbers: of the rows that are asked for, ascending; pieces without one are not read. None:
            all rows.

    Returns:
        What came out of each piece, in the set's order.

    Raises:
        IntegrityError: a file is gone, damaged, or not the one that was written.
    """

    def on(group: _RowGroup) -> ResultT:
        return work(group.start, _read(training_set, group, columns))

    groups = [group for group in _row_groups(training_set) if _holds_any(group, numbers)]
    num_threads = min(len(os.sched_getaffinity(0)), _MOST_THREADS)
    with ThreadPoolExecutor(num_threads, thread_name_prefix="pieces") as threads:
        yield from threads.map(on, groups)


def _row_groups(training_set: TrainingSet) -> list[_RowGroup]:
    found, start = [], 0
    for file in files_of(training_set):
        try:
            footer = pq.read_metadata(file)
        except (OSError, ValueError, pa.ArrowException) as error:
            raise damaged(training_set, str(error)) from error
        for number in range(footer.num_row_groups):
            num_rows = footer.row_group(number).num_rows
            found.append(_RowGroup(file=file, number=number, start=start, num_rows=num_rows))
            start += num_rows
    if start != training_set.num_rows:
        raise damaged(training_set, f"{start:,} of {training_set.num_rows:,} rows are there")
    return found


def _holds_any(group: _RowGroup, numbers: npt.NDArray[np.integer] | None) -> bool:
    if numbers is None:
        return True
    first, last = np.searchsorted(numbers, (group.start, group.start + group.num_rows))
    return bool(first < last)


def _read(
    training_set: TrainingSet, group: _RowGroup, columns: Sequence[str] | None
) -> pl.DataFrame:
    try:
        with pq.ParquetFile(group.file, page_checksum_verification=True) as stored:
            names = list(columns) if columns else None
            table = stored.read_row_group(group.number, columns=names, use_threads=False)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(training_set, str(error)) from error
    return pl.DataFrame(pl.from_arrow(table))


def read_columns(training_set: TrainingSet, columns: Sequence[str]) -> pl.DataFrame:
    """Read some columns of all rows.

    Raises:
        IntegrityError: as `each_piece`.
    """
    found = each_piece(training_set, lambda _start, piece: piece, columns=columns)
    return pl.concat(list(found)).select(columns)


def take_rows(
    training_set: TrainingSet,
    numbers: npt.NDArray[np.integer],
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Read the rows of these numbers, from 0, in the order that they are named in.

    Raises:
        IntegrityError: as `each_piece`.
    """
    ascending = np.sort(numbers)

    def pick(start: int, piece: pl.DataFrame) -> pl.DataFrame:
        first, last = np.searchsorted(ascending, (start, start + piece.height))
        return piece[ascending[first:last] - start]

    # No rows still have columns.
    asked = ascending if len(ascending) else None
    found = list(each_piece(training_set, pick, columns=columns, numbers=asked))
    # Where each of them stands among the ascending ones.
    places = np.empty(len(numbers), dtype=np.int64)
    places[np.argsort(numbers, kind="stable")] = np.arange(len(numbers))
    return pl.concat(found)[places]


def stored_digest(training_set: TrainingSet) -> str:
    """Give the `content_digest` of all rows, a column in memory at a time.

    Raises:
        IntegrityError: as `each_piece`.
    """
    return columns_digest(
        read_columns(training_set, [name]).to_series() for name in column_names(training_set)
    )


def column_names(training_set: TrainingSet) -> list[str]:
    """Name all columns, in their order.

    Raises:
        IntegrityError: the first file is gone or damaged.
    """
    try:
        names: list[str] = pq.read_schema(files_of(training_set)[0]).names
    except (OSError, pa.ArrowException) as error:
        raise damaged(training_set, str(error)) from error
    return names
