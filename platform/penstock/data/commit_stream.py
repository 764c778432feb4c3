"""What a commit writes: frames in types that tables keep, with their hidden partition column.

On its way to the writer every frame is also summarized, so that a version's statistics cost no
second reading.
"""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import polars as pl
import pyarrow as pa

from penstock.data import statistics
from penstock.data.statistics import Summary, is_mostly_distinct
from penstock.errors import DataError

PartitionBy = Literal["day", "month"]
# The hidden column that splits the stored files, by what it is derived from.
PARTITIONS: dict[PartitionBy, tuple[str, str]] = {
    "day": ("__day", "%Y-%m-%d"),
    "month": ("__month", "%Y-%m"),
}
HIDDEN = frozenset(column for column, _ in PARTITIONS.values())


def frames_of(
    data: pl.DataFrame | pa.RecordBatchReader,
) -> tuple[Iterator[pl.DataFrame], pl.Schema]:
    """Give the data as frames, and their schema."""
    if isinstance(data, pl.DataFrame):
        return iter([data]), data.schema
    empty = pl.DataFrame(pl.from_arrow(data.schema.empty_table()))
    frames = (pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))) for batch in data)
    return frames, empty.schema


def storable(name: str, dtype: pl.DataType) -> pl.DataType:
    """The type that the table keeps instead, without loss; times are microseconds in UTC."""
    if isinstance(dtype, pl.Datetime):
        return pl.Datetime("us", "UTC")
    if dtype in (pl.Categorical, pl.Enum):
        return pl.String()
    if dtype in (pl.UInt8, pl.UInt16, pl.UInt32):
        return pl.Int64()
    if dtype in (pl.UInt64, pl.Null, pl.Object, pl.Time, pl.Duration):
        raise DataError(
            f"column {name!r} is {dtype}, which no table keeps",
            next_step="cast it to a signed integer, a float, a string or a timestamp",
        )
    return dtype


def check_columns(
    table: str, stored: pl.Schema, schema: pl.Schema, partition: tuple[str, str] | None
) -> pl.Schema:
    """Give the columns of a table to rows that have the same ones.

    Raises:
        DataError: a column is missing, too many or of another type, or the split differs.
    """
    hidden = [name for name in stored if name in HIDDEN]
    if hidden != ([partition[0]] if partition else []):
        raise DataError(
            f"table {table} is split by {hidden or 'nothing'}, the new rows by "
            f"{partition[0] if partition else 'nothing'}"
        )
    wanted = pl.Schema({k: v for k, v in stored.items() if k not in HIDDEN})
    if dict(schema) != dict(wanted):
        names = sorted(schema.keys() | wanted.keys())
        differing = [name for name in names if schema.get(name) != wanted.get(name)]
        raise DataError(
            f"the new rows differ from table {table} in "
            + ", ".join(f"{name} ({schema.get(name, 'absent')})" for name in differing),
            allowed=", ".join(f"{name} ({wanted.get(name, 'absent')})" for name in differing),
        )
    return wanted


class CommitStream:
    """Hands frames to the writer, takes their statistics, and keeps what its source raised."""

    def __init__(
        self,
        frames: Iterator[pl.DataFrame],
        schema: pl.Schema,
        partition: tuple[str, str] | None,
        event_time: str | None,
        folder: Path,
        part: str,
    ) -> None:
        self.failure: BaseException | None = None
        self._frames = frames
        self._schema = schema
        self._partition = partition
        self._event_time = event_time
        self._statistics_path = folder / f"{part}.parquet"

    def mostly_distinct(self) -> list[str]:
        """Name the columns of whose values, by the first frame, hardly any comes again."""
        first = next(self._frames, None)
        if first is None:
            return []
        self._frames = itertools.chain([first], self._frames)
        return [c.name for c in first if not c.dtype.is_nested() and is_mostly_distinct(c)]

    def reader(self) -> pa.RecordBatchReader:
        """Give the stream that the writer reads."""
        empty = self._with_partition(pl.DataFrame(schema=self._schema))
        schema = empty.to_arrow().schema
        return pa.RecordBatchReader.from_batches(schema, self._batches())

    def _batches(self) -> Iterator[pa.RecordBatch]:
        summaries: dict[str, Summary] = {}
        statistics.update(summaries, pl.DataFrame(schema=self._schema))
        try:
            for frame in self._frames:
                typed = self._typed(frame)
                statistics.update(summaries, typed)
                yield from self._with_partition(typed).to_arrow().to_batches()
            # Must be on disk before the commit that names it, which follows this stream's end.
            statistics.store(summaries.values(), self._statistics_path)
        except BaseException as error:
            self.failure = error
            raise

    def _typed(self, frame: pl.DataFrame) -> pl.DataFrame:
        columns = []
        for name, dtype in self._schema.items():
            column = pl.col(name)
            given = frame.schema[name]
            if isinstance(given, pl.Datetime) and given.time_zone is None:
                column = column.dt.replace_time_zone("UTC")
            columns.append(column if given == dtype else column.cast(dtype))
        return frame.select(columns)

    def _with_partition(self, frame: pl.DataFrame) -> pl.DataFrame:
        if self._partition is None or self._event_time is None:
            return frame
        name, form = self._partition
        days = frame[self._event_time].dt.date()
        # A few days, each written out once.
        known = days.unique()
        # Of no rows the replacing leaves dates.
        texts = days.replace_strict(known, known.dt.strftime(form)).cast(pl.String)
        return frame.with_columns(texts.alias(name))
