"""Where checked rows wait until all are checked: files that are gone when the ingest ends.

What a killed ingest left behind is cleared by the next one: each folder is locked by its owner, and
the lock dies with it.
"""

import contextlib
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
from pydantic import Field

from penstock.data import sources
from penstock.data.checks import ROW, Checked, check
from penstock.data.contracts import Table
from penstock.data.source_kinds import SqlSource, Unit
from penstock.errors import DataError
from penstock.locks import private_folder
from penstock.records import Record
from penstock.settings import Settings


class StagedUnit(Record):
    """What checking a unit left in the staging folder; `refused` says why its source is refused."""

    source_index: int
    first_row: int
    num_read: int = 0
    kept_path: str = ""
    num_kept: int = 0
    bad_path: str = ""
    num_bad: int = 0
    num_values: Mapping[str, int] = Field(default_factory=dict)
    num_failed: Mapping[str, int] = Field(default_factory=dict)
    digest: str | None = None
    """SHA-256 of a query's rows; None for a file, whose bytes were digested before."""
    refused: str | None = None


@contextlib.contextmanager
def staging_folder(settings: Settings, table: Table) -> Iterator[Path]:
    """Give an empty folder of our own, and clear those whose ingest is dead."""
    root = settings.storage_path / "staging" / table.name
    with private_folder(root, what=f"the staging of {table.name}") as own:
        yield own


def stage(unit: Unit, *, table: Table, folder: str) -> dict[str, Any]:
    """Read and check a unit; leave its kept and bad rows as Arrow files. Gives a `StagedUnit`."""
    name = f"{unit.source_index}-{unit.first_row}"
    kept_path, bad_path = Path(folder) / f"{name}.kept.arrow", Path(folder) / f"{name}.bad.arrow"
    totals = {"num_read": 0, "num_kept": 0, "num_bad": 0}
    num_values = dict.fromkeys(table.columns, 0)
    num_failed = dict.fromkeys(table.columns, 0)
    digest = hashlib.sha256() if isinstance(unit.source, SqlSource) else None
    try:
        with _FrameFile(kept_path) as kept, _FrameFile(bad_path) as bad:
            for block in sources.read(unit, table):
                if digest is not None:
                    for record in block.records(range(block.num_rows)):
                        digest.update(record.encode() + b"\n")
                checked: Checked = check(block, table)
                kept.write(checked.kept)
                bad.write(checked.bad)
                totals["num_read"] += block.num_rows
                totals["num_kept"] += checked.kept.height
                totals["num_bad"] += checked.bad.height
                for column in table.columns:
                    num_values[column] += checked.num_values[column]
                    num_failed[column] += checked.num_failed[column]
    except DataError as error:
        refused = StagedUnit(
            source_index=unit.source_index, first_row=unit.first_row, refused=str(error)
        )
        return refused.model_dump()
    return StagedUnit(
        source_index=unit.source_index,
        first_row=unit.first_row,
        kept_path=str(kept_path),
        bad_path=str(bad_path),
        num_values=num_values,
        num_failed=num_failed,
        digest=digest.hexdigest() if digest else None,
        **totals,
    ).model_dump()


class _FrameFile(contextlib.AbstractContextManager["_FrameFile"]):
    """An Arrow file that frames of one schema are written to; absent while it has none."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._writer: pa.RecordBatchFileWriter | None = None

    def write(self, frame: pl.DataFrame) -> None:
        if frame.is_empty():
            return
        table = frame.to_arrow()
        if self._writer is None:
            options = pa.ipc.IpcWriteOptions(compression="lz4")
            self._writer = pa.ipc.new_file(str(self._path), table.schema, options=options)
        self._writer.write_table(table)

    def __exit__(self, *_: object) -> None:
        if self._writer is not None:
            self._writer.close()


def read_frames(path: str, columns: list[str] | None = None) -> Iterator[pl.DataFrame]:
    """Read the frames that `stage` left, in order; none where it left no file."""
    if not path or not Path(path).is_file():
        return
    with pa.memory_map(path) as file:
        reader = pa.ipc.open_file(file)
        for position in range(reader.num_record_batches):
            table = pa.Table.from_batches([reader.get_batch(position)])
            yield pl.DataFrame(pl.from_arrow(table.select(columns) if columns else table))


def repeated_keys(staged: list[StagedUnit], table: Table, stored: pl.LazyFrame | None) -> pl.Series:
    """Mark the kept rows whose key stands in an earlier row of the ingest or in the table.

    Returns:
        One boolean a kept row, in the order of `staged`. Holds the keys of the ingest in memory,
        and reads of the table only the rows between their smallest and largest.
    """
    key = list(table.key)
    parts = [frame for unit in staged for frame in read_frames(unit.kept_path, key)]
    num_rows = sum(part.height for part in parts)
    if not key or not num_rows:
        return pl.repeat(False, num_rows, dtype=pl.Boolean, eager=True)
    keys = pl.concat(parts)
    first = keys[key[0]] if len(key) == 1 else keys.to_struct("key")
    repeated = ~first.is_first_distinct()
    if stored is not None:
        repeated = repeated.scatter(stored_keys(keys, stored), True)
    return repeated


def stored_keys(keys: pl.DataFrame, stored: pl.LazyFrame) -> pl.Series:
    """Give the places of the keys that the table has; there is at least one key.

    Reads of the table only the rows between the smallest and the largest.
    """
    names = keys.columns
    lead = names[0]
    near = stored.filter(pl.col(lead).is_between(keys[lead].min(), keys[lead].max()))
    known = near.select(names).join(keys.lazy(), on=names, how="semi").unique().collect()
    return keys.with_row_index("at").join(known, on=names, how="semi")["at"]


def kept_rows(
    staged: list[StagedUnit], repeated: pl.Series
) -> Iterator[tuple[StagedUnit, pl.DataFrame, pl.DataFrame]]:
    """Give each unit's kept rows in order, split into the new ones and those with a known key."""
    start = 0
    for unit in staged:
        for frame in read_frames(unit.kept_path):
            mask = repeated.slice(start, frame.height)
            start += frame.height
            yield unit, frame.filter(~mask).drop(ROW), frame.filter(mask)
