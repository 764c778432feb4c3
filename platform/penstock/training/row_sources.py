"""Where the rows of a run lie: a frame, or a matrix of features in memory or in a mapped file.

A mapped file is memory that the system may take back: it holds what is in use, reads the rest when
it is asked for, and counts against nobody. So whatever fits into memory whole also runs on rows
that do not, on the very same numbers.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.features.training_set import TrainingSet, content_digest
from penstock.features.training_set_pieces import (
    column_names,
    each_piece,
    read_columns,
    stored_digest,
    take_rows,
)
from penstock.progress import Progress, silent
from penstock.training.mapped_rows import make_mapped
from penstock.training.preprocessing import Preprocessing
from penstock.training.validation import to_matrix

Array = npt.NDArray[np.float64]

FREE_SHARE = 0.5
"""Of the memory that is free, rows may take this much where the settings do not say."""
_VALUE_BYTES = 8
_SCALED_BYTES = 4
_NUMBER = "__row_number"
_FEATURES_FILE, _SCALED_FILE = "features.npy", "scaled.npy"


@dataclass(frozen=True, kw_only=True)
class Lying:
    """Whether rows are held in memory, and why."""

    in_memory: bool
    reason: str


def plan_rows(
    num_rows: int,
    *,
    num_columns: int,
    num_features: int,
    free_bytes: int,
    allowed_bytes: int | None,
) -> Lying:
    """Choose memory where the rows have room there: what are no features, a matrix, and scaled.

    Args:
        num_rows: of the training set.
        num_columns: of the training set, features among them.
        num_features: of these.
        free_bytes: memory that nobody uses.
        allowed_bytes: what rows may take by the settings; None: `FREE_SHARE` of what is free.
    """
    row_bytes = num_columns * _VALUE_BYTES + num_features * _SCALED_BYTES
    needed = num_rows * row_bytes
    allowed = int(free_bytes * FREE_SHARE) if allowed_bytes is None else allowed_bytes
    told = f"{num_rows:,} rows x {num_columns} columns take {needed / 1e6:,.1f} MB"
    limit = f"{allowed / 1e6:,.1f} MB that rows may take"
    if needed <= allowed:
        return Lying(in_memory=True, reason=f"{told}, within the {limit}")
    return Lying(in_memory=False, reason=f"{told}, more than the {limit}")


class RowSource(Protocol):
    """All rows of a training set, as splits and estimators need them."""

    @property
    def light(self) -> pl.DataFrame:
        """Every row in the set's order, with label, times, keys and groups at least."""
        ...

    def whole(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Give some rows of `light` with all columns of the set."""
        ...

    def matrix(self, rows: pl.DataFrame, *, feature_names: Sequence[str], side: str) -> Array:
        """Give the features of some rows of `light`, [n, F] in their order; NaN is missing.

        The matrix given before is no longer needed.
        """
        ...

    def scaled(self, scaling: Preprocessing, features: Array) -> npt.NDArray[np.float32]:
        """Fill and scale what `matrix` gave, which is then used up."""
        ...

    def digest(self) -> str:
        """Give the content's digest."""
        ...

    def release(self) -> None:
        """Give back what matrices took, once nobody uses them any more."""
        ...


@dataclass(frozen=True)
class HeldRows:
    """Rows of a frame, for who cuts many folds out of it."""

    light: pl.DataFrame

    def whole(self, rows: pl.DataFrame) -> pl.DataFrame:
        """They are."""
        return rows

    def matrix(self, rows: pl.DataFrame, *, feature_names: Sequence[str], side: str) -> Array:
        """Lay the columns out row by row."""
        return to_matrix(rows, feature_names=feature_names, side=side)

    def scaled(self, scaling: Preprocessing, features: Array) -> npt.NDArray[np.float32]:
        """Scale them where they lie."""
        return scaling.apply_over(features)

    def digest(self) -> str:
        """Give the frame's."""
        return content_digest(self.light)

    def release(self) -> None:
        """Memory goes with its last user."""


@dataclass(frozen=True, kw_only=True)
class PieceRows:
    """Rows whose features are read some at a time, and laid out in memory or in files."""

    training_set: TrainingSet
    light: pl.DataFrame
    folder: Path | None
    """For files; its own, one that every worker sees. None: memory holds the features."""
    progress: Progress = silent

    @classmethod
    def open(
        cls,
        training_set: TrainingSet,
        folder: Path | None,
        *,
        groups: Sequence[str],
        progress: Progress = silent,
    ) -> "PieceRows":
        """Read the columns that are no features, and those by which rows are grouped.

        Raises:
            IntegrityError: a file of the set is gone or damaged.
        """
        heavy = set(training_set.feature_names) - set(groups)
        names = [name for name in column_names(training_set) if name not in heavy]
        light = read_columns(training_set, names)
        return cls(
            training_set=training_set,
            folder=folder,
            light=light.with_row_index(_NUMBER),
            progress=progress,
        )

    def whole(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Read the rows, and add what `rows` knows beside."""
        found = take_rows(self.training_set, rows[_NUMBER].to_numpy())
        beside = [name for name in rows.columns if name not in (*found.columns, _NUMBER)]
        return found.with_columns(rows.select(beside))

    def matrix(self, rows: pl.DataFrame, *, feature_names: Sequence[str], side: str) -> Array:
        """Lay the features out, each row where it belongs.

        Raises:
            StorageFullError: the file has no room.
        """
        numbers = rows[_NUMBER].to_numpy()
        # polars knows of row numbers that they are sorted, and looks at no row for it.
        ascending = rows[_NUMBER].sort().to_numpy()
        out = self._empty(len(numbers), len(feature_names))
        to_rows = partial(to_matrix, feature_names=feature_names, side=side)
        every = np.arange(self.training_set.num_rows, dtype=numbers.dtype)
        if np.array_equal(numbers, every):

            def lay(start: int, piece: pl.DataFrame) -> int:
                to_rows(piece, out=out[start : start + piece.height])
                return piece.height
        else:
            places = np.full(self.training_set.num_rows, -1, dtype=np.int64)
            places[numbers] = np.arange(len(numbers))

            def lay(start: int, piece: pl.DataFrame) -> int:
                to = places[start : start + piece.height]
                out[to[to >= 0]] = to_rows(piece.filter(to >= 0))
                return piece.height

        done = 0
        for num_rows in each_piece(
            self.training_set, lay, columns=feature_names, numbers=ascending
        ):
            done += num_rows
            if self.folder is not None:
                self.progress("rows into files", done, self.training_set.num_rows)
        return out

    def _empty(self, num_rows: int, num_features: int) -> Array:
        if self.folder is None:
            return np.empty((num_rows, num_features))
        return make_mapped(self.folder / _FEATURES_FILE, num_rows, num_features, np.float64)

    def scaled(self, scaling: Preprocessing, features: Array) -> npt.NDArray[np.float32]:
        """Scale where they lie in memory, or into a file beside.

        Raises:
            StorageFullError: the file has no room.
        """
        if self.folder is None:
            return scaling.apply_over(features)
        file = self.folder / _SCALED_FILE
        out = make_mapped(file, len(features), scaling.num_columns, np.float32)
        scaling.apply(features, out=out)
        # Workers on other nodes read what is in the file, not what is in this node's memory.
        out.flush()
        return out

    def digest(self) -> str:
        """Give the set's, a column in memory at a time."""
        return stored_digest(self.training_set)

    def release(self) -> None:
        """Remove the files, where there are any."""
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)


def source_of(rows: pl.DataFrame | RowSource) -> RowSource:
    """Give a frame as a source."""
    return HeldRows(rows) if isinstance(rows, pl.DataFrame) else rows
