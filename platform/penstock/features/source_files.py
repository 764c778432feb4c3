"""Reads and writes the sources that Penstock's offline store knows: Delta tables and Parquet."""

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast.data_format import DeltaFormat, ParquetFormat
from feast.data_source import DataSource
from feast.infra.offline_stores.file_source import FileSource
from feast.repo_config import RepoConfig

from penstock.data import tables
from penstock.errors import DataError, DeclarationError
from penstock.features.delta_source import DeltaSource
from penstock.locks import exclusive

Source: TypeAlias = DeltaSource | FileSource


def scan(source: DataSource | None, config: RepoConfig) -> pl.LazyFrame:
    """Read a source lazily.

    Raises:
        DeclarationError: the source is of a kind that this store does not read.
        DataError: there is no such file.
    """
    readable = known(source)
    if isinstance(readable, DeltaSource):
        return readable.scan(config)
    location = _location(readable, config)
    if isinstance(readable.file_format, DeltaFormat):
        return tables.scan_path(location)
    if "://" in location:
        override = readable.s3_endpoint_override
        return pl.scan_parquet(
            location, storage_options={"aws_endpoint_url": override} if override else None
        )
    path = Path(location)
    if not path.exists() and not any(sign in location for sign in "*?["):
        raise DataError(
            f"the source {readable.name!r} has no file {location}",
            next_step="write it first, or mend the path of its FileSource",
        )
    # A name that exists is itself, even where it looks like a pattern.
    return pl.scan_parquet(path, glob=not path.is_file())


def append(source: DataSource | None, table: pa.Table, config: RepoConfig) -> None:
    """Add rows to what a source holds already, as one step: all of them or none.

    Raises:
        DataError: the columns are not those of the source, or cannot be cast to its types.
    """
    readable = known(source)
    stored = scan(readable, config).collect_schema()
    if table.column_names != stored.names():
        raise DataError(
            f"the rows for the source {readable.name!r} have the columns "
            f"{', '.join(table.column_names)}",
            allowed=f"{', '.join(stored.names())}, in this order",
        )
    try:
        rows = to_polars(table).cast(stored)
    except pl.exceptions.PolarsError as error:
        raise DataError(f"the rows do not fit the source {readable.name!r}: {error}") from error
    if isinstance(readable, DeltaSource) or isinstance(readable.file_format, DeltaFormat):
        target = tables.at_path(_delta_location(readable, config))
        partition = target.partition_by()
        event_time = readable.timestamp_field if partition else None
        target.commit(rows, mode="append", partition_by=partition, event_time=event_time)
        return
    location = _location(readable, config)
    filesystem, path = FileSource.create_filesystem_and_path(
        location, readable.s3_endpoint_override or ""
    )
    if filesystem is not None:
        pq.write_to_dataset(rows.to_arrow(), path, filesystem=filesystem)
    elif Path(path).is_dir():
        _write_whole(rows.to_arrow(), _beside(path), Path(path) / f"{uuid.uuid4().hex}.parquet")
    else:
        file = Path(path)
        with exclusive(file.with_name(f".{file.name}.lock"), what=str(file), wait_s=600):
            whole = pl.concat([pl.read_parquet(file, glob=False), rows])
            _write_whole(whole.to_arrow(), _beside(path), file)


def replace(
    source: DataSource, table: pa.Table, config: RepoConfig, *, allow_overwrite: bool
) -> bool:
    """Write rows as all that a source holds; False where something is there and may not go.

    Raises:
        DataError: the source is a folder of several files: no rename replaces them at once.
    """
    readable = known(source)
    if isinstance(readable, DeltaSource) or isinstance(readable.file_format, DeltaFormat):
        delta = tables.at_path(_delta_location(readable, config))
        if delta.exists() and not allow_overwrite:
            return False
        delta.commit(to_polars(table), mode="overwrite")
        return True
    location = _location(readable, config)
    filesystem, path = FileSource.create_filesystem_and_path(
        location, readable.s3_endpoint_override or ""
    )
    if filesystem is not None:
        pq.write_table(table, path, filesystem=filesystem)
        return True
    target = Path(path)
    if target.exists() and not allow_overwrite:
        return False
    if target.is_dir():
        files = [file for file in target.rglob("*") if file.is_file()]
        if len(files) > 1:
            raise DataError(
                f"{target} holds {len(files)} files, and a kill would leave old ones beside new",
                allowed="a Delta table, or one file whose name ends in .parquet",
                next_step="save there, or remove the folder first",
            )
        target = files[0] if files else target / "part-0.parquet"
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = _beside(path)
    if target.suffix == ".parquet" or target.is_file():
        _write_whole(table, unfinished, target)
        return True
    unfinished.mkdir()
    pq.write_table(table, unfinished / "part-0.parquet")
    unfinished.rename(target)
    return True


def between(
    frame: pl.LazyFrame, column: str, start: datetime | None, end: datetime | None
) -> pl.LazyFrame:
    """Keep the rows with start <= time <= end; a bound without a zone is UTC, as Feast has it."""
    dtype = frame.collect_schema()[column]
    for bound, keeps in ((start, pl.Expr.ge), (end, pl.Expr.le)):
        if bound is not None:
            frame = frame.filter(keeps(pl.col(column), _bound(bound, dtype)))
    return frame


def _bound(moment: datetime, dtype: pl.DataType) -> pl.Expr:
    """The moment as the column's type writes it."""
    utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        return pl.lit(utc).dt.convert_time_zone(dtype.time_zone)
    return pl.lit(utc.replace(tzinfo=None))


def to_polars(table: pa.Table) -> pl.DataFrame:
    """The table as a frame, without a copy where its types allow."""
    frame = pl.from_arrow(table)
    if not isinstance(frame, pl.DataFrame):
        raise TypeError(f"an Arrow table became {type(frame).__name__}")
    return frame


def _beside(path: str) -> Path:
    # Never inside of a folder that is read: a kill leaves it, and a reader would meet half a file.
    return Path(path).with_name(f".{Path(path).name}.{uuid.uuid4().hex}")


def _write_whole(table: pa.Table, unfinished: Path, file: Path) -> None:
    # A reader sees the old file or the new one.
    pq.write_table(table, unfinished)
    unfinished.replace(file)


def known(source: DataSource | None) -> Source:
    """Take a source that this store reads.

    Raises:
        DeclarationError: it is of another kind.
    """
    if isinstance(source, DeltaSource):
        return source
    if isinstance(source, FileSource) and isinstance(
        source.file_format, ParquetFormat | DeltaFormat | None
    ):
        return source
    raise DeclarationError(
        f"Penstock's offline store does not read {_describe(source)}",
        allowed="DeltaSource, or FileSource with Parquet or Delta",
    )


def _describe(source: DataSource | None) -> str:
    if source is None:
        return "a feature view without a batch source"
    return f"the source {source.name!r}, a {type(source).__name__}"


def _location(source: FileSource, config: RepoConfig) -> str:
    location: str = FileSource.get_uri_for_file_path(config.repo_path, source.path)
    return location


def _delta_location(source: Source, config: RepoConfig) -> str:
    return source.location(config) if isinstance(source, DeltaSource) else _location(source, config)
