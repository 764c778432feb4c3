"""Raw sources: Parquet, CSV, JSON Lines files and SQL queries, read in blocks that know their rows.

A large source is split into units of work, which Ray Data spreads over the cluster; below
`RAY_DATA_THRESHOLD_BYTES` its seconds of fixed cost buy nothing, and one task does it all.
"""

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import polars as pl
import pyarrow as pa
import pyarrow.csv as pa_csv

from penstock.data import parquet_files
from penstock.data.checks import RawBlock
from penstock.data.contracts import Table
from penstock.data.conversion import fits
from penstock.data.source_kinds import FileSource, Inspected, Source, SqlSource, Unit
from penstock.errors import DataError
from penstock.logs import redact

RAY_DATA_THRESHOLD_BYTES = 512 << 20
_BLOCK_ROWS = 1 << 18
_CSV_BLOCK_BYTES = 16 << 20
_UNIT_ROWS = 1 << 20


def inspect(source: Source, index: int, table: Table) -> Inspected:
    """Look at a source's shape without reading its rows.

    Raises:
        DataError: the source is absent, broken, unsafe, or has other columns than the contract.
    """
    if isinstance(source, SqlSource):
        return Inspected(digest=None, units=(Unit(source_index=index, source=source),))
    path, kind = source.path, source.kind
    if not path.is_file():
        raise DataError(
            f"{path} is a folder" if path.is_dir() else f"there is no file {path}",
            next_step="name files" if path.is_dir() else "check the path",
        )
    try:
        stat = path.stat()
        unit = Unit(
            source_index=index,
            source=source,
            size_bytes=stat.st_size,
            modified_ns=stat.st_mtime_ns,
        )
        if stat.st_size == 0:
            raise DataError(f"{path} is empty", next_step="copy it again, or leave it out")
        units: tuple[Unit, ...] = (unit,)
        ignored: tuple[str, ...] = ()
        if kind == "parquet":
            units, ignored = _inspect_parquet(path, unit, table)
        elif kind == "csv":
            ignored = _compare_columns(path, _csv_header(path), table)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        _refuse_changed(unit)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    return Inspected(digest=digest, units=units, ignored_columns=ignored)


def _compare_columns(path: Path, names: Sequence[str], table: Table) -> tuple[str, ...]:
    """Refuse missing and repeated columns; name those that the contract does not have."""
    missing = [name for name in table.columns if name not in names]
    if missing:
        raise DataError(
            f"{path} lacks the columns {', '.join(missing)}",
            allowed=f"the columns of {table.name}: {', '.join(table.columns)}",
        )
    repeated = sorted({name for name in names if names.count(name) > 1})
    if repeated:
        raise DataError(f"{path} has the columns {', '.join(repeated)} more than once")
    ignored = tuple(name for name in names if name not in table.columns)
    if ignored and table.schema.strict is True:
        raise DataError(
            f"{path} has the further columns {', '.join(ignored)}",
            allowed=f"the columns of {table.name}: {', '.join(table.columns)}",
        )
    return ignored


def _inspect_parquet(
    path: Path, unit: Unit, table: Table
) -> tuple[tuple[Unit, ...], tuple[str, ...]]:
    file = parquet_files.open_file(path)
    try:
        ignored = _compare_columns(path, file.schema_arrow.names, table)
        schema = parquet_files.read_schema(path, file)
        wrong = [name for name, dtype in table.columns.items() if not fits(schema[name], dtype)]
        if wrong:
            raise DataError(
                f"{path} has " + ", ".join(f"{name} as {schema[name]}" for name in wrong),
                allowed=", ".join(f"{name} as {table.columns[name]}" for name in wrong),
                next_step="write the file with those types: nothing is coerced",
            )
        units, groups, first_row, num_rows = [], [], 0, 0
        for group in range(file.metadata.num_row_groups):
            groups.append(group)
            num_rows += file.metadata.row_group(group).num_rows
            is_last = group == file.metadata.num_row_groups - 1
            if num_rows >= _UNIT_ROWS or is_last:
                update = {"first_row": first_row, "row_groups": tuple(groups)}
                units.append(unit.model_copy(update=update))
                first_row, num_rows, groups = first_row + num_rows, 0, []
        return tuple(units), ignored
    finally:
        file.close()


def _csv_header(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(-1, 2)
        if file.read(1) != b"\n":
            raise DataError(
                f"{path} does not end with a line end, as a truncated file does not",
                next_step="copy it again, or end its last line if it is whole",
            )
    try:
        with path.open(encoding="utf-8-sig", newline="") as text:
            return next(csv.reader(text))
    except (UnicodeDecodeError, csv.Error, StopIteration) as error:
        raise DataError(f"{path} has no readable header: {error}") from error


def _refuse_changed(unit: Unit) -> None:
    if isinstance(unit.source, FileSource):
        stat = unit.source.path.stat()
        if (stat.st_size, stat.st_mtime_ns) != (unit.size_bytes, unit.modified_ns):
            raise DataError(
                f"{unit.source.path} changed while it was read",
                next_step="ingest it again when its writer has ended",
            )


def read(unit: Unit, table: Table) -> Iterator[RawBlock]:
    """Read a unit's rows in order, block by block.

    Raises:
        DataError: the source broke while it was read, or changed meanwhile.
    """
    source = unit.source
    if isinstance(source, SqlSource):
        yield from _read_sql(source, table)
        return
    try:
        if source.kind == "parquet":
            yield from _read_parquet(unit, source.path, table)
        elif source.kind == "csv":
            yield from _read_csv(source.path, table)
        else:
            yield from _read_jsonl(source.path, table)
        _refuse_changed(unit)
    except OSError as error:
        raise DataError(f"{source.path} cannot be read: {error}") from error


def _read_parquet(unit: Unit, path: Path, table: Table) -> Iterator[RawBlock]:
    first_row = unit.first_row
    groups = list(unit.row_groups or ())
    for frame in parquet_files.read_blocks(path, list(table.columns), groups, _BLOCK_ROWS):
        yield RawBlock(first_row, {s.name: s for s in frame}, frame.height)
        first_row += frame.height


def _read_csv(path: Path, table: Table) -> Iterator[RawBlock]:
    names = list(table.columns)
    first_row = 0
    try:
        reader = pa_csv.open_csv(
            path,
            pa_csv.ReadOptions(block_size=_CSV_BLOCK_BYTES),
            pa_csv.ParseOptions(newlines_in_values=True),
            pa_csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                include_columns=names,
                null_values=[""],
                strings_can_be_null=True,
                quoted_strings_can_be_null=False,
            ),
        )
        for batch in reader:
            frame = pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch])))
            # An empty text is no number: only in a text column does "" differ from nothing.
            columns = {
                name: frame[name] if dtype == pl.String else frame[name].replace("", None)
                for name, dtype in table.columns.items()
            }
            yield RawBlock(first_row, columns, frame.height)
            first_row += frame.height
    except (pa.ArrowException, ValueError) as error:
        raise DataError(
            f"{path} is broken: {str(error).splitlines()[0][:200]}",
            next_step="one ragged line makes all others doubtful: mend the file",
        ) from error


def _read_jsonl(path: Path, table: Table) -> Iterator[RawBlock]:
    lines: list[dict[str, Any]] = []
    first_row = 0
    missing = set(table.columns)
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            try:
                record = orjson.loads(line)
            except orjson.JSONDecodeError as error:
                raise DataError(f"{path} line {number} is not JSON: {error}") from None
            if not isinstance(record, dict):
                raise DataError(
                    f"{path} line {number} is a {type(record).__name__}", allowed="JSON objects"
                )
            unknown = record.keys() - table.columns.keys()
            if unknown and table.schema.strict is True:
                _compare_columns(path, [*table.columns, *sorted(unknown)], table)
            missing -= record.keys()
            lines.append(record)
            if len(lines) >= _BLOCK_ROWS:
                yield _object_block(first_row, lines, table)
                first_row, lines = first_row + len(lines), []
    if missing and first_row + len(lines):
        _compare_columns(path, [name for name in table.columns if name not in missing], table)
    if lines:
        yield _object_block(first_row, lines, table)


def _object_block(first_row: int, records: Sequence[Any], table: Table) -> RawBlock:
    columns = {name: [record.get(name) for record in records] for name in table.columns}
    return RawBlock(first_row, columns, len(records))


def _read_sql(source: SqlSource, table: Table) -> Iterator[RawBlock]:
    import sqlalchemy

    url = source.url.get_secret_value()
    try:
        engine = sqlalchemy.create_engine(url)
    except (sqlalchemy.exc.SQLAlchemyError, ImportError, ValueError) as error:
        raise _sql_failure(source, error) from None
    try:
        with engine.connect().execution_options(stream_results=True) as connection:
            result = connection.execute(sqlalchemy.text(source.query))
            _compare_columns(Path(source.name), list(result.keys()), table)
            first_row = 0
            for rows in result.mappings().partitions(_BLOCK_ROWS):
                yield _object_block(first_row, rows, table)
                first_row += len(rows)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _sql_failure(source, error) from None
    finally:
        engine.dispose()


def _sql_failure(source: SqlSource, error: Exception) -> DataError:
    text = str(getattr(error, "orig", None) or error).splitlines()[0][:300]
    return DataError(
        f"the query {source.name} failed: {redact(text, source.url.get_secret_value())}",
        next_step="check URL and query",
    )


def for_each(
    units: Sequence[Unit], work: Callable[[Unit], dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Do the work of every unit: by Ray Data where there is much and a Ray to spread it on.

    The work's result must be JSON. Results come in no particular order.
    """
    is_small = sum(unit.size_bytes for unit in units) < RAY_DATA_THRESHOLD_BYTES
    if is_small or len(units) < 2 or not _is_on_ray():
        yield from map(work, units)
        return
    from ray import data as ray_data

    items = [{"unit": position} for position in range(len(units))]
    dataset = ray_data.from_items(items, override_num_blocks=len(items)).map(
        _RemoteWork(tuple(units), work)
    )
    for row in dataset.iter_rows():
        yield orjson.loads(row["result"])


def _is_on_ray() -> bool:
    import ray

    return bool(ray.is_initialized())


class _RemoteWork:
    """What a Ray Data task does with a row that names a unit."""

    def __init__(self, units: tuple[Unit, ...], work: Callable[[Unit], dict[str, Any]]) -> None:
        self._units = units
        self._work = work

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        return {"result": orjson.dumps(self._work(self._units[row["unit"]]))}
