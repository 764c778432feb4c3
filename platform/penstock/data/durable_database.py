"""A database that keeps what was answered for: a SQLite file of its own, or a Postgres server."""

import contextlib
from pathlib import Path
from typing import Any

import sqlalchemy

from penstock.errors import SettingsError

_BUSY_TIMEOUT_S = 30.0


def open_engine(url: str, *, what: str) -> Any:
    """Open it so that what is committed survives a kill and a power cut.

    Args:
        url: SQLAlchemy's.
        what: is kept there, in an error's words.

    Raises:
        SettingsError: it is neither SQLite nor Postgres.
    """
    kind = url.partition(":")[0].partition("+")[0]
    if kind == "postgresql":
        return sqlalchemy.create_engine(url, pool_pre_ping=True)
    if kind != "sqlite":
        raise SettingsError(f"{what} cannot be kept in {kind}", allowed="sqlite or postgresql")
    file = Path(url.removeprefix("sqlite:///"))
    file.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(OSError):
        # What is kept is about people; SQLite gives its other files the same mode.
        file.touch(mode=0o600)
    engine = sqlalchemy.create_engine(url, connect_args={"timeout": _BUSY_TIMEOUT_S})

    @sqlalchemy.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA journal_mode = WAL")
        # What was answered survives a power cut too.
        connection.execute("PRAGMA synchronous = FULL")

    return engine


def make_tables(engine: Any, metadata: Any) -> None:
    """Make the tables and indexes that are absent."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Two that make the same table at once: IF NOT EXISTS alone fails for one of them.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7212349081)"))
        for table in metadata.sorted_tables:
            connection.execute(sqlalchemy.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sqlalchemy.schema.CreateIndex(index, if_not_exists=True))
