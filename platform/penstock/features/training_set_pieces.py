"""A training set for whoever cannot hold it: some rows at a time, or some columns of all rows."""

from collections.abc import Iterator, Sequence
from pathlib import Path

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


def pieces(
    training_set: TrainingSet, columns: Sequence[str] | None = None
) -> Iterator[pl.DataFrame]:
    """Give the rows in their order, a row group at a time; page checksums are verified.

    Args:
        training_set: what to read.
        columns: which; None: all.

    Raises:
        IntegrityError: a file is gone, damaged, or not the one that was written.
    """
    num_rows = 0
    for file in files_of(training_set):
        for table in _groups(training_set, file, columns):
            piece = pl.DataFrame(pl.from_arrow(table))
            num_rows += piece.height
            yield piece
    if num_rows != training_set.num_rows:
        raise damaged(training_set, f"{num_rows:,} of {training_set.num_rows:,} rows are there")


def _groups(
    training_set: TrainingSet, file: Path, columns: Sequence[str] | None
) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(file, page_checksum_verification=True) as stored:
            for number in range(stored.num_row_groups):
                yield stored.read_row_group(number, columns=list(columns) if columns else None)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(training_set, str(error)) from error


def read_columns(training_set: TrainingSet, columns: Sequence[str]) -> pl.DataFrame:
    """Read some columns of all rows.

    Raises:
        IntegrityError: as `pieces`.
    """
    return pl.concat(list(pieces(training_set, columns))).select(columns)


def take_rows(
    training_set: TrainingSet,
    numbers: npt.NDArray[np.integer],
    columns: Sequence[str] | None = None,
) -> pl.DataFrame:
    """Read the rows of these numbers, from 0, in the order that they are named in.

    Raises:
        IntegrityError: as `pieces`.
    """
    ascending = np.sort(numbers)
    found, start = [], 0
    for piece in pieces(training_set, columns):
        first, last = np.searchsorted(ascending, (start, start + piece.height))
        found.append(piece[ascending[first:last] - start])
        start += piece.height
    # Where each of them stands among the ascending ones.
    places = np.empty(len(numbers), dtype=np.int64)
    places[np.argsort(numbers, kind="stable")] = np.arange(len(numbers))
    return pl.concat(found)[places]


def stored_digest(training_set: TrainingSet) -> str:
    """Give the `content_digest` of all rows, a column in memory at a time.

    Raises:
        IntegrityError: as `pieces`.
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
