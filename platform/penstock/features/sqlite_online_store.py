"""A Feast online store in one SQLite file: one row an entity, one column a feature.

Feast's own SQLite store keeps one row for each single value and two indexes over them, lets an
older row overwrite a newer one, and keeps the former value where a NaN is written. Here a row is
written whole, and only over a row that is not newer: by event time, then by created time.
"""

import sqlite3
import threading
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
from feast import Entity, FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.infra.online_stores.helpers import compute_table_id
from feast.infra.online_stores.online_store import OnlineStore
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel, RepoConfig

from penstock.errors import NotFoundError
from penstock.features.online_rows import (
    EPOCH,
    NO_EVENT_US,
    ReadRows,
    WrittenRows,
    rows_from_feast,
    value_fields,
)

# SQLite's own limit on parameters is 32,766 since 3.32; a read stays far below it.
_KEYS_PER_READ = 4_096
_BUSY_TIMEOUT_S = 30.0
_ONLY_NEWER = (
    "WHERE (excluded.event_us, coalesce(excluded.created_us, -1)) "
    ">= ({table}.event_us, coalesce({table}.created_us, -1))"
)
_COLUMN_TYPES = {
    "int32_val": "INTEGER",
    "int64_val": "INTEGER",
    "float_val": "REAL",
    "double_val": "REAL",
    "bool_val": "INTEGER",
    "string_val": "TEXT",
    "bytes_val": "BLOB",
    "unix_timestamp_val": "INTEGER",
}


class RowSqliteOnlineStoreConfig(FeastConfigBaseModel):
    """How feature_store.yaml points at the file."""

    type: Literal["penstock.features.sqlite_online_store.RowSqliteOnlineStore"] = (
        "penstock.features.sqlite_online_store.RowSqliteOnlineStore"
    )
    path: str = "data/online_store.db"
    """The file; relative: to the feature repo."""


class RowSqliteOnlineStore(OnlineStore):
    """One table a feature view; usable by any Feast project through its full class path."""

    def __init__(self) -> None:
        self._connection: sqlite3.Connection | None = None
        # One connection serves all threads, one statement at a time.
        self._lock = threading.Lock()

    def write_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the block in one transaction; a stored row that is newer stays as it is."""
        self._write(config, view, rows, _ONLY_NEWER)

    def replace_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the block in one transaction, over newer rows too."""
        self._write(config, view, rows, "")

    def _write(self, config: RepoConfig, view: FeatureView, rows: WrittenRows, where: str) -> None:
        names = list(rows.features)
        columns = ["entity_key", "event_us", "created_us", *(_column(name) for name in names)]
        updates = ", ".join(f"{column} = excluded.{column}" for column in columns[1:])
        table = _table(config, view)
        # S608: every name in the statement is quoted by _quote; the values are parameters.
        statement = (
            f"INSERT INTO {table} ({', '.join(columns)}) "  # noqa: S608
            f"VALUES ({', '.join('?' * len(columns))}) "
            f"ON CONFLICT (entity_key) DO UPDATE SET {updates} "
            f"{where.format(table=table)}"
        )
        created = rows.created_us if rows.created_us is not None else [None] * len(rows.keys)
        values = zip(rows.keys, rows.event_us, created, *rows.features.values(), strict=True)
        with self._lock:
            connection = self._connect(config)
            with connection, _applied(view):
                connection.executemany(statement, values)

    def read_rows(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[bytes], features: Sequence[str]
    ) -> ReadRows:
        """Read numeric features of many entities at once; a key may come more than once."""
        event_us = np.full(len(keys), NO_EVENT_US, dtype=np.int64)
        values = np.full((len(keys), len(features)), np.nan)
        found = {row[0]: row[1:] for row in self._select(config, view, keys, features)}
        known = [position for position, key in enumerate(keys) if key in found]
        if known:
            # A null becomes NaN on its way into a float array.
            block = np.array([found[keys[position]] for position in known], dtype=object)
            event_us[known] = block[:, 0].astype(np.int64)
            values[known] = block[:, 1:].astype(np.float64)
        return ReadRows(event_us=event_us, values=values)

    def watch(self, config: RepoConfig) -> "_FileChanges":
        """Look at whether the file is written."""
        return _FileChanges(open_file(config))

    def mark_filled(self, config: RepoConfig, view: FeatureView) -> None:
        """Nothing to note: a table that is there has kept its rows."""

    def is_filled(self, config: RepoConfig, view: FeatureView) -> bool:
        """Always: a table that is gone is an error by itself."""
        return True

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Feast's way to write: by protobufs."""
        for rows in rows_from_feast(data):
            self.write_rows(config, table, rows)
            if progress:
                progress(len(rows.keys))

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[tuple[datetime | None, dict[str, Value] | None]]:
        """Feast's way to read: by protobufs; (None, None) for an unknown entity."""
        fields = value_fields(table)
        names = requested_features or list(fields)
        keys = [serialize_entity_key(k, entity_key_serialization_version=3) for k in entity_keys]
        found = {row[0]: row[1:] for row in self._select(config, table, keys, names)}
        results: list[tuple[datetime | None, dict[str, Value] | None]] = []
        for key in keys:
            if key not in found:
                results.append((None, None))
                continue
            event_us, *values = found[key]
            results.append(
                (
                    EPOCH + timedelta(microseconds=event_us),
                    {
                        name: Value() if value is None else Value(**{fields[name]: value})
                        for name, value in zip(names, values, strict=True)
                    },
                )
            )
        return results

    def update(
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,
    ) -> None:
        """Make the table of every view that stays, add its new features, drop what went."""
        with self._lock:
            connection = self._connect(config)
            with connection:
                for view in tables_to_delete:
                    connection.execute(f"DROP TABLE IF EXISTS {_table(config, view)}")
                for view in tables_to_keep:
                    _create(connection, _table(config, view), value_fields(view))

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Drop the views' tables; the file stays, it may hold another project's."""
        with self._lock:
            connection = self._connect(config)
            with connection:
                for view in tables:
                    connection.execute(f"DROP TABLE IF EXISTS {_table(config, view)}")
        self.disconnect()

    def disconnect(self) -> None:
        """Close the file; the next call opens it again."""
        with self._lock:
            if self._connection is not None:
                self._connection.close()
                self._connection = None

    def _select(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[bytes], features: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        columns = ", ".join(["entity_key", "event_us", *(_column(name) for name in features)])
        table = _table(config, view)
        unique = list(dict.fromkeys(keys))
        rows: list[tuple[Any, ...]] = []
        with self._lock, _applied(view):
            connection = self._connect(config)
            for start in range(0, len(unique), _KEYS_PER_READ):
                part = unique[start : start + _KEYS_PER_READ]
                marks = ", ".join("?" * len(part))
                # S608: every name in the statement is quoted by _quote.
                query = f"SELECT {columns} FROM {table} WHERE entity_key IN ({marks})"  # noqa: S608
                rows += connection.execute(query, part).fetchall()
        return rows

    def _connect(self, config: RepoConfig) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = open_file(config)
        return self._connection


class _FileChanges:
    """Whether anybody committed to the file; SQLite does not say what."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        # Not the one that the store may write by, whose own commits it would not count.
        self._connection = connection
        self._version = self._read()

    def _read(self) -> int:
        return int(self._connection.execute("PRAGMA data_version").fetchone()[0])

    def take(self) -> Sequence[bytes] | None:
        """Nothing was written, or anything may have been."""
        before, self._version = self._version, self._read()
        return () if before == self._version else None

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


def open_file(config: RepoConfig) -> sqlite3.Connection:
    """Open the online store's file, made when absent."""
    path = Path(config.online_store.path)
    if config.repo_path and not path.is_absolute():
        path = Path(config.repo_path) / path
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path, timeout=_BUSY_TIMEOUT_S, check_same_thread=False)
    # Readers go on while a materialization writes; a kill loses at most what was not committed,
    # and never the file.
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    return connection


class _applied:  # noqa: N801 - reads as a clause of a with statement
    """Turn SQLite's "no such table" into what the user can do about it."""

    def __init__(self, view: FeatureView) -> None:
        self._view = view

    def __enter__(self) -> None:
        return None

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if isinstance(error, sqlite3.OperationalError) and (
            "no such table" in str(error)
            or "no column" in str(error)
            or "no such col" in str(error)
        ):
            raise NotFoundError(
                f"the online store has no place for the feature view {self._view.name!r} "
                f"as it is declared ({error})",
                next_step="run `penstock features apply`, then `penstock features materialize`",
            ) from None


def _create(connection: sqlite3.Connection, table: str, fields: dict[str, str]) -> None:
    connection.execute(
        f"CREATE TABLE IF NOT EXISTS {table} (entity_key BLOB PRIMARY KEY, "
        "event_us INTEGER NOT NULL, created_us INTEGER) WITHOUT ROWID"
    )
    present = {row[1] for row in connection.execute(f"PRAGMA table_info({table})")}
    for name, field in fields.items():
        if f"f_{name}" not in present:
            kind = _COLUMN_TYPES[field]
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {_column(name)} {kind}")


def _table(config: RepoConfig, view: FeatureView) -> str:
    versioned = config.registry.enable_online_feature_view_versioning
    return _quote(compute_table_id(config.project, view, versioned))


def _column(feature: str) -> str:
    # The prefix keeps a feature apart from the columns of our own.
    return _quote(f"f_{feature}")


def _quote(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'
