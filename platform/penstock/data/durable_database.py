"""A database that keeps what was answered for: a SQLite file of its own, or a Postgres server."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import sqlalchemy

from penstock.errors import PenstockError, SettingsError
from penstock.logs import redact

_BUSY_TIMEOUT_S = 30.0


class DurableDatabase:
    """The database with its tables. Whatever goes wrong in it is told as an error of ours."""

    def __init__(self, url: str, metadata: Any, *, what: str) -> None:
        """Open it; tables and indexes are made where they are absent.

        Args:
            url: SQLAlchemy's.
            metadata: its tables.
            what: is kept there, in an error's words.

        Raises:
            SettingsError: it is neither SQLite nor Postgres.
            PenstockError: it does not answer.
        """
        self._url = url
        self._what = what
        with self._explained():
            self._engine = _open_engine(url, what=what)
            _make_tables(self._engine, metadata)

    @property
    def is_sqlite(self) -> bool:
        """Whether it is a file."""
        return bool(self._engine.dialect.name == "sqlite")

    @contextlib.contextmanager
    def reading(self) -> Iterator[Any]:
        """Give a connection; what is written in it is taken back, unless it is committed there.

        Raises:
            PenstockError: the database does not answer.
        """
        with self._explained(), self._engine.connect() as connection:
            yield connection

    @contextlib.contextmanager
    def writing(self) -> Iterator[Any]:
        """Give a connection; what is written in it is on disk when the block ends.

        Raises:
            PenstockError: the database does not answer.
        """
        with self._explained(), self._engine.begin() as connection:
            yield connection

    def close(self) -> None:
        """Close the connections."""
        self._engine.dispose()

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlalchemy.exc.SQLAlchemyError as error:
            reason = str(getattr(error, "orig", None) or error).splitlines()[0][:300]
            raise PenstockError(
                f"the database of {self._what} does not answer: {redact(reason, self._url)}",
                next_step="free its disk or start its database, then try again",
            ) from None


def _open_engine(url: str, *, what: str) -> Any:
    """Open it so that what is committed survives a kill and a power cut."""
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


def _make_tables(engine: Any, metadata: Any) -> None:
    """Make the tables and indexes that are absent."""
    with engine.begin() as connection:
        if connection.dialect.name == "postgresql":
            # Two that make the same table at once: IF NOT EXISTS alone fails for one of them.
            connection.execute(sqlalchemy.text("SELECT pg_advisory_xact_lock(7212349081)"))
        for table in metadata.sorted_tables:
            connection.execute(sqlalchemy.schema.CreateTable(table, if_not_exists=True))
            for index in table.indexes:
                connection.execute(sqlalchemy.schema.CreateIndex(index, if_not_exists=True))
