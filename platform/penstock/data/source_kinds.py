"""What raw data can come from, and the parts of it that one task reads."""

import contextlib
import os
import time
import uuid
from pathlib import Path

import orjson
from pydantic import SecretStr

from penstock.errors import DataError
from penstock.logs import shown_url
from penstock.records import Record

_QUERY_LIFE_S = 24 * 3600.0
_SUFFIXES = {".parquet": "parquet", ".csv": "csv", ".jsonl": "jsonl", ".ndjson": "jsonl"}


class FileSource(Record):
    """A file, by its absolute path; its suffix says what it is."""

    path: Path

    @property
    def name(self) -> str:
        """What the records call it."""
        return str(self.path)

    @property
    def kind(self) -> str:
        """How the file is read.

        Raises:
            DataError: the suffix is none of those that are read.
        """
        kind = _SUFFIXES.get(self.path.suffix.lower())
        if kind is None:
            raise DataError(
                f"{self.path} ends in {self.path.suffix!r}", allowed=", ".join(_SUFFIXES)
            )
        return kind


class SqlSource(Record):
    """The rows of a query, from any database that SQLAlchemy reaches."""

    url: SecretStr
    query: str

    @property
    def name(self) -> str:
        """What the records call it: the URL without its password, and the query."""
        return f"{shown_url(self.url.get_secret_value())} :: {self.query}"


Source = FileSource | SqlSource


def leave_query(source: SqlSource, folder: Path) -> Path:
    """Leave a query for a job in a file that only we can read: its URL may have a password."""
    folder.mkdir(parents=True, exist_ok=True)
    for other in folder.glob("*.json"):
        with contextlib.suppress(FileNotFoundError):
            # A command that was killed left it; no living one waits that long for its job.
            if time.time() - other.stat().st_mtime > _QUERY_LIFE_S:
                other.unlink()
    path = folder / f"{uuid.uuid4().hex}.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        content = {"url": source.url.get_secret_value(), "query": source.query}
        file.write(orjson.dumps(content))
    return path


def take_query(path: Path) -> SqlSource:
    """Read a query that was left for a job, and remove the file.

    Raises:
        DataError: the file is absent or holds something else.
    """
    try:
        content = orjson.loads(path.read_bytes())
        return SqlSource(url=SecretStr(content["url"]), query=content["query"])
    except (OSError, orjson.JSONDecodeError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} holds no query: {type(error).__name__}", allowed='{"url": …, "query": …}'
        ) from None
    finally:
        path.unlink(missing_ok=True)


class Unit(Record):
    """A part of a source that one task reads; `row_groups` only where the source is Parquet."""

    source_index: int
    source: Source
    first_row: int = 0
    row_groups: tuple[int, ...] | None = None
    size_bytes: int = 0
    modified_ns: int = 0


class Inspected(Record):
    """What is known of a source before its rows are read."""

    digest: str | None
    """SHA-256 of the file; a query's digest is known only when its rows are read."""
    units: tuple[Unit, ...]
    ignored_columns: tuple[str, ...] = ()
