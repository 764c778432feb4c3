"""Tables: versioned, atomic, safe with many writers. The only door to Delta Lake.

A version holds what its commit left, for ever: nothing is removed behind a reader's back. A commit
may carry app transactions (`digest of a source` -> 1): one that the table has with this number or
a higher one makes the commit a no-op, atomically with the data, so that repeating work after a
crash adds nothing twice.
"""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
import pyarrow as pa
from deltalake import (
    ColumnProperties,
    CommitProperties,
    DeltaTable,
    Transaction,
    WriterProperties,
    write_deltalake,
)
from deltalake.exceptions import CommitFailedError, DeltaError, TableNotFoundError

from penstock.data import statistics
from penstock.data.commit_stream import (
    HIDDEN,
    PARTITIONS,
    CommitStream,
    PartitionBy,
    check_columns,
    frames_of,
    storable,
)
from penstock.data.statistics import ColumnStatistics, Summary
from penstock.errors import (
    BusyError,
    DataError,
    IntegrityError,
    NotFoundError,
    storage_full,
    unknown_name,
)
from penstock.locks import exclusive
from penstock.records import Record
from penstock.settings import Settings
from penstock.use_cases import split_name

Mode = Literal["append", "overwrite"]
_METADATA = "penstock."
_STATISTICS_ID = "statistics"
_STATISTICS_FOLDER = "_penstock_statistics"
_WAIT_S = 600.0
# Old versions are the record of what a model was trained on: their log and files never expire.
_CONFIGURATION = {
    "delta.logRetentionDuration": "interval 36500 days",
    "delta.deletedFileRetentionDuration": "interval 36500 days",
}


class TableVersion(Record):
    """One committed state of a table."""

    table: str
    version: int
    num_rows: int
    committed_at: datetime
    operation: str
    metadata: dict[str, str]
    """What the commit's author wrote down: source versions, the ingest's report, and so on."""


@dataclass(frozen=True)
class TableFolder:
    """One Delta table by its folder, for those who have a path rather than a name."""

    path: Path
    name: str

    def exists(self) -> bool:
        """Whether anything was ever committed here."""
        return (self.path / "_delta_log").is_dir() and DeltaTable.is_deltatable(str(self.path))

    def _open(self, version: int | None = None) -> DeltaTable:
        try:
            table = DeltaTable(str(self.path))
            if version is None or version == table.version():
                return table
            if not 0 <= version <= table.version():
                raise NotFoundError(
                    f"table {self.name} has no version {version}",
                    allowed=f"0 to {table.version()}",
                )
            return DeltaTable(str(self.path), version=version)
        except TableNotFoundError:
            raise NotFoundError(
                f"there is no table {self.name}: nothing was ever written to it",
                next_step="ingest or build it first",
            ) from None
        except DeltaError as error:
            raise IntegrityError(f"table {self.name} in {self.path} is damaged: {error}") from error

    def latest(self, version: int | None = None) -> TableVersion:
        """Describe the newest version, or the one asked for.

        Raises:
            NotFoundError: there is no such table or version.
        """
        newest = self._open()
        wanted = newest.version() if version is None else version
        at = newest if wanted == newest.version() else self._open(wanted)
        # The door's history() counts from the newest commit whatever version is loaded.
        commit = newest.history(newest.version() - wanted + 1)[-1]
        return self._describe(at, commit)

    def _describe(self, at: DeltaTable, commit: Mapping[str, Any]) -> TableVersion:
        return TableVersion(
            table=self.name,
            version=at.version(),
            num_rows=at.count(),
            committed_at=datetime.fromtimestamp(commit["timestamp"] / 1000, UTC),
            operation=str(commit.get("operation", "UNKNOWN")).lower(),
            metadata={
                key.removeprefix(_METADATA): str(value)
                for key, value in commit.items()
                if key.startswith(_METADATA)
            },
        )

    def history(self, limit: int | None = None) -> list[TableVersion]:
        """Describe the versions, newest first."""
        newest = self._open()
        commits = newest.history(limit)
        return [
            self._describe(self._open(newest.version() - back), commit)
            for back, commit in enumerate(commits)
        ]

    def scan(self, version: int | None = None) -> pl.LazyFrame:
        """Read the table lazily, at the newest version or the one asked for."""
        frame = pl.scan_delta(self._open(version))
        return frame.drop(HIDDEN & set(frame.collect_schema().names()))

    def known_transactions(self, names: Iterable[str]) -> set[str]:
        """Those of the app transactions that some commit of the table carried."""
        if not self.exists():
            return set()
        table = self._open()
        return {name for name in names if table.transaction_version(name) is not None}

    def transaction_number(self, name: str) -> int | None:
        """The highest number that some commit carried for the app transaction; None: none did."""
        return self._open().transaction_version(name) if self.exists() else None

    def version(self) -> int | None:
        """The newest version's number; None: nothing was ever committed."""
        return self._open().version() if self.exists() else None

    def newest_with(self, key: str) -> TableVersion | None:
        """Describe the newest version whose author wrote something down under this name."""
        for limit in (16, None) if self.exists() else ():
            for back, commit in enumerate((newest := self._open()).history(limit)):
                if f"{_METADATA}{key}" in commit:
                    return self._describe(self._open(newest.version() - back), commit)
        return None

    def partition_by(self) -> PartitionBy | None:
        """How the table's files are split by event time."""
        columns = self._open().metadata().partition_columns
        return next((by for by, (name, _) in PARTITIONS.items() if name in columns), None)

    def delete_rows(self, column: str, values: Sequence[str]) -> None:
        """Commit a version without the rows whose column has one of these values."""
        quoted = ", ".join("'" + value.replace("'", "''") + "'" for value in values)
        with exclusive(self._lock_path, what=f"table {self.name}", wait_s=_WAIT_S):
            self._open().delete(f'"{column}" IN ({quoted})')

    @property
    def statistics_path(self) -> Path:
        """The folder of what is kept about the table's versions."""
        return self.path / _STATISTICS_FOLDER

    def summaries(self, version: int | None = None) -> list[Summary]:
        """What each column holds at that version; see `statistics` for what is exact."""
        newest = self._open()
        wanted = self._open(version).version()
        parts: list[list[Summary]] = []
        for commit in newest.history()[newest.version() - wanted :]:
            part = commit.get(f"{_METADATA}{_STATISTICS_ID}")
            if part is None:
                # Another writer's commit has no summary: measure the version itself.
                return self._measure(wanted)
            try:
                parts.append(statistics.load(self.statistics_path / f"{part}.parquet"))
            except (OSError, pl.exceptions.PolarsError) as error:
                raise IntegrityError(
                    f"the statistics {part} of table {self.name} are unreadable: {error}"
                ) from error
            if commit.get("operationParameters", {}).get("mode") == "Overwrite":
                break
        # Oldest first, so that the columns stand in the order in which they were written.
        return statistics.merge(parts[::-1])

    def _measure(self, version: int) -> list[Summary]:
        return statistics.summarize(self.scan(version).collect_batches(chunk_size=1 << 18))

    def commit(
        self,
        data: pl.DataFrame | pa.RecordBatchReader,
        *,
        mode: Mode,
        partition_by: PartitionBy | None = None,
        event_time: str | None = None,
        transactions: Mapping[str, int] | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> TableVersion:
        """Write one new version, whole or not at all.

        Args:
            data: a frame, or a stream that is written without holding all of it.
            mode: append adds rows of the same columns; overwrite replaces rows and columns.
            partition_by: how the files are split by `event_time`; both or neither.
            event_time: a `Datetime("us", "UTC")` column.
            transactions: app transactions; if the table has one of them with this number or a
                higher one, nothing is written and the newest version comes back.
            metadata: kept with the version.

        Raises:
            DataError: the columns are not those of the table, or of a type it cannot keep.
            BusyError: another writer held the table for ten minutes, or came in between.
            StorageFullError: the disk is full; the table is as it was.
        """
        batches, schema = frames_of(data)
        schema = pl.Schema({name: storable(name, dtype) for name, dtype in schema.items()})
        if (partition_by is None) != (event_time is None):
            raise DataError("a partition needs the event time's column, and the other way round")
        partition = PARTITIONS[partition_by] if partition_by else None
        part = uuid.uuid4().hex
        transactions = dict(transactions or {})
        with exclusive(self._lock_path, what=f"table {self.name}", wait_s=_WAIT_S):
            existing = self._open() if self.exists() else None
            if existing is not None:
                seen = [(existing.transaction_version(n), v) for n, v in transactions.items()]
                if any(number is not None and number >= v for number, v in seen):
                    return self.latest()
                if mode == "append":
                    stored = pl.scan_delta(existing).collect_schema()
                    schema = check_columns(self.name, stored, schema, partition)
            stream = CommitStream(
                batches, schema, partition, event_time, self.statistics_path, part
            )
            try:
                write_deltalake(
                    existing or str(self.path),
                    stream.reader(),
                    mode=mode,
                    schema_mode="overwrite" if mode == "overwrite" else None,
                    partition_by=[partition[0]] if partition else None,
                    configuration=_CONFIGURATION if existing is None else None,
                    writer_properties=_writer_properties(stream.mostly_distinct()),
                    commit_properties=CommitProperties(
                        custom_metadata={
                            f"{_METADATA}{key}": value
                            for key, value in {**(metadata or {}), _STATISTICS_ID: part}.items()
                        },
                        app_transactions=[Transaction(k, v) for k, v in transactions.items()],
                    ),
                )
            except CommitFailedError as error:
                raise BusyError(
                    f"another writer changed table {self.name} in between", next_step="try again"
                ) from error
            except (DeltaError, OSError) as error:
                if full := storage_full(stream.failure or error):
                    raise full from error
                if stream.failure is not None:
                    raise stream.failure from error
                if isinstance(error, OSError):
                    raise
                raise DataError(f"table {self.name} cannot take this: {error}") from error
            return self.latest()

    @property
    def _lock_path(self) -> Path:
        return self.path.parent / f".{self.path.name}.lock"


def _writer_properties(mostly_distinct: Sequence[str]) -> WriterProperties:
    # A writer hashes each value for its dictionary until that is too large, and then drops it.
    plain = ColumnProperties(dictionary_enabled=False)
    return WriterProperties(
        compression="ZSTD",
        compression_level=1,
        column_properties=dict.fromkeys(mostly_distinct, plain),
    )


def at_path(path: str | Path) -> TableFolder:
    """Find the folder of a table by its path; it need not exist."""
    return TableFolder(Path(path), Path(path).name)


def folder(settings: Settings, table: str) -> TableFolder:
    """Find the folder of the table `<use case>.<name>`; it need not exist."""
    use_case, name = split_name(table)
    return TableFolder(settings.table_path(use_case, name), table)


def list_tables(settings: Settings) -> list[str]:
    """Name every table that has a version."""
    root = settings.storage_path / "tables"
    return sorted(
        f"{path.parent.parent.name}.{path.parent.name}" for path in root.glob("*/*/_delta_log")
    )


def exists(settings: Settings, table: str) -> bool:
    """Whether the table has a version."""
    return folder(settings, table).exists()


def _existing(settings: Settings, table: str) -> TableFolder:
    found = folder(settings, table)
    if not found.exists():
        raise unknown_name("table", table, list_tables(settings))
    return found


def latest(settings: Settings, table: str, version: int | None = None) -> TableVersion:
    """Describe the newest version of a table, or the one asked for.

    Raises:
        NotFoundError: there is no such table or version.
    """
    return _existing(settings, table).latest(version)


def scan(settings: Settings, table: str, *, version: int | None = None) -> pl.LazyFrame:
    """Read a table lazily, at its newest version or the one asked for.

    Raises:
        NotFoundError: there is no such table or version.
    """
    return _existing(settings, table).scan(version)


def history(settings: Settings, table: str, limit: int | None = None) -> list[TableVersion]:
    """Describe a table's versions, newest first."""
    return _existing(settings, table).history(limit)


def column_statistics(
    settings: Settings, table: str, *, version: int | None = None
) -> list[ColumnStatistics]:
    """What each column of a table holds at a version."""
    return [summary.statistics() for summary in column_summaries(settings, table, version=version)]


def column_summaries(
    settings: Settings, table: str, *, version: int | None = None
) -> list[Summary]:
    """The summaries that a table's statistics at a version are made of."""
    return _existing(settings, table).summaries(version)


def commit(
    settings: Settings,
    table: str,
    data: pl.DataFrame | pa.RecordBatchReader,
    *,
    mode: Mode,
    partition_by: PartitionBy | None = None,
    event_time: str | None = None,
    transactions: Mapping[str, int] | None = None,
    metadata: Mapping[str, str] | None = None,
) -> TableVersion:
    """Write one new version of a table, whole or not at all; see `TableFolder.commit`."""
    return folder(settings, table).commit(
        data,
        mode=mode,
        partition_by=partition_by,
        event_time=event_time,
        transactions=transactions,
        metadata=metadata,
    )


def exists_path(path: str | Path) -> bool:
    """Whether the folder is a table."""
    return at_path(path).exists()


def scan_path(path: str | Path, *, version: int | None = None) -> pl.LazyFrame:
    """Read the table in a folder lazily, for those who have no project around it."""
    return at_path(path).scan(version)
