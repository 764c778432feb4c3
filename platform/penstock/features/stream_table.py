"""The raw table's side of a stream: which keys it has, and how events land in it exactly once.

A flush is one commit: good rows, the positions of all partitions after them, and the flush's
number, which lands once. What was read and is not in a flush that landed is read again.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import orjson
import polars as pl

from penstock.data import quarantine, tables
from penstock.data.checks import BAD_ROWS, ROW, RawBlock
from penstock.data.contracts import Table
from penstock.data.ingest import UNIQUE_RULE, landing
from penstock.data.staging import stored_keys
from penstock.errors import BusyError
from penstock.records import Record
from penstock.settings import Settings

STREAM = "stream"
"""The name of the app transaction and of the metadata that a flush leaves."""
MAX_KEYS = 1_000_000
"""At most so many keys are held in memory: an event whose key is among them is known at once."""
_FIRST_LOOK = timedelta(days=1)
_ATTEMPTS = 5
NO_VERSION = -1
"""Stands for the version of a table that nothing was committed to yet."""
_MAX_VERSIONS_TO_READ = 50
# Operations that leave every row as it is.
_NO_CHANGE = frozenset({"optimize", "vacuum start", "vacuum end"})
SOURCE = "__source"
"""The column of kept rows that names their partition; `ROW` is their offset there."""
BAD_EVENTS = pl.Schema({"source": pl.String(), **BAD_ROWS})
"""Bad rows with the partition that they came from; `row` is their offset there."""


class Landed(Record):
    """Where a table stands: its newest version, and the newest flush of a stream."""

    version: int = NO_VERSION
    flush: int = 0
    positions: Mapping[str, int] = {}
    """Partition -> the offset of the first event that the table does not have."""


class Flushed(Record):
    """A flush that landed; read = kept + quarantined."""

    flush: int
    version: int
    num_read: int
    num_kept: int
    num_quarantined: int
    positions: Mapping[str, int]


@dataclass
class Pending:
    """Events that were judged and are not in the table yet."""

    kept: list[pl.DataFrame] = field(default_factory=list)
    """The contract's columns, `SOURCE` and `ROW`: partition and offset."""
    bad: list[pl.DataFrame] = field(default_factory=list)
    num_read: int = 0
    positions: dict[str, int] = field(default_factory=dict)
    """Of all partitions, whether this has events of them or not."""
    flush_id: str = field(default_factory=lambda: uuid.uuid4().hex)


class StreamTable:
    """One raw table that a stream writes."""

    def __init__(self, settings: Settings, table: Table) -> None:
        self._settings = settings
        self._table = table
        self._folder = tables.folder(settings, table.name)

    def landed(self) -> Landed:
        """Read where the table stands."""
        version = self.version()
        newest = self._folder.newest_with(STREAM)
        if newest is None:
            return Landed(version=version)
        note = orjson.loads(newest.metadata[STREAM])
        return Landed(version=version, flush=note["flush"], positions=note["positions"])

    def version(self) -> int:
        """The table's newest version."""
        version = self._folder.version()
        return NO_VERSION if version is None else version

    def is_ours(self, after: int, *, max_flush: int) -> bool:
        """Whether all versions after one are flushes whose rows were counted, no more and no less.

        What changes no row is passed over.
        """
        num_versions = self.version() - after
        if not 0 < num_versions <= _MAX_VERSIONS_TO_READ:
            return num_versions == 0
        for version in self._folder.history(limit=num_versions):
            note = version.metadata.get(STREAM)
            if note is None and version.operation not in _NO_CHANGE:
                return False
            found = orjson.loads(note) if note is not None else {"flush": 0, "again": 0}
            if found["flush"] > max_flush or found["again"]:
                return False
        return True

    def clear(self) -> None:
        """Remove what a killed stream left in quarantine and never landed."""
        quarantine.clear_unlanded(self._settings, self._table.name, f"{STREAM}:")

    def flush(self, pending: Pending, number: int, *, keys: "KeyMemory") -> "FlushOutcome":
        """Land the events: bad ones in quarantine, good ones in one commit.

        A second flush of the same events finds that they are there.

        Raises:
            BusyError: another stream has landed a flush of that number, or others kept the table.
            StorageFullError: the disk is full; nothing has landed.
        """
        digest = f"{STREAM}:{number}:{pending.flush_id}"
        with landing(self._settings, self._table):
            before = self.version()
            kept, again = self._split_known(pending.kept, before, keys)
            bad = pl.concat(
                [pl.DataFrame(schema=BAD_EVENTS), *pending.bad, _bad_again(again, self._table)]
            )
            transactions = {STREAM: number}
            if bad.height:
                transactions[quarantine.transaction(digest)] = 1
                quarantine.add(
                    self._settings,
                    self._table.name,
                    iter([_quarantined(bad, digest)]),
                )
            note = {
                "flush": number,
                "id": pending.flush_id,
                "positions": pending.positions,
                "read": pending.num_read,
                "kept": kept.height,
                "quarantined": bad.height,
                "again": again.height,
            }
            version = self._commit(kept.select(list(self._table.columns)), transactions, note)
        flushed = Flushed(
            flush=number,
            version=version,
            num_read=pending.num_read,
            num_kept=kept.height,
            num_quarantined=bad.height,
            positions=pending.positions,
        )
        return FlushOutcome(flushed, again, before)

    def _split_known(
        self, parts: list[pl.DataFrame], version: int, keys: "KeyMemory"
    ) -> tuple[pl.DataFrame, pl.DataFrame]:
        """The rows whose keys are new, and those whose keys the table has."""
        schema = {**self._table.columns, SOURCE: pl.String(), ROW: pl.Int64()}
        rows = pl.concat([pl.DataFrame(schema=schema), *parts])
        if not rows.height or version == NO_VERSION or keys.has_all_of(version):
            return rows, rows.clear()
        places = stored_keys(rows.select(self._table.key), self._folder.scan(version))
        is_known = pl.repeat(False, rows.height, dtype=pl.Boolean, eager=True).scatter(places, True)
        return rows.filter(~is_known), rows.filter(is_known)

    def _commit(
        self, rows: pl.DataFrame, transactions: Mapping[str, int], note: Mapping[str, Any]
    ) -> int:
        for attempt in range(_ATTEMPTS):
            try:
                committed = self._folder.commit(
                    rows,
                    mode="append",
                    partition_by=self._table.partition_by,
                    event_time=self._table.event_time,
                    transactions=transactions,
                    metadata={STREAM: orjson.dumps(note).decode()},
                )
            except BusyError:
                if attempt == _ATTEMPTS - 1:
                    raise
                continue
            return self._version_of(committed, note)
        raise AssertionError("the last attempt returns or raises")

    def _version_of(self, committed: tables.TableVersion, note: Mapping[str, Any]) -> int:
        """The version in which this very flush landed."""
        mine: tables.TableVersion | None = committed
        if STREAM not in committed.metadata:
            mine = self._folder.newest_with(STREAM)
        if mine is None or orjson.loads(mine.metadata[STREAM])["id"] != note["id"]:
            raise BusyError(
                f"another stream has written flush {note['flush']} of {self._table.name}",
                next_step="let one of the two end; what this one read is read again",
            )
        return mine.version


@dataclass(frozen=True)
class FlushOutcome:
    """What a flush did.

    Attributes:
        flushed: what landed.
        again: rows that were counted as they came, and whose keys the table turned out to have.
        before: the version that the table had just before.
    """

    flushed: Flushed
    again: pl.DataFrame
    before: int


def _bad_again(again: pl.DataFrame, table: Table) -> pl.DataFrame:
    block = RawBlock(0, {s.name: s for s in again.drop(SOURCE, ROW)}, again.height)
    places = range(again.height)
    keys = zip(*(block.texts(column, places) for column in table.key), strict=True)
    return pl.DataFrame(
        {
            "source": again[SOURCE],
            "row": again[ROW],
            "column": [", ".join(table.key)] * again.height,
            "rule": [UNIQUE_RULE] * again.height,
            "value": [", ".join(map(str, key)) for key in keys],
            "record": block.records(places),
        },
        schema=BAD_EVENTS,
    )


def _quarantined(bad: pl.DataFrame, digest: str) -> pl.DataFrame:
    return bad.with_columns(
        pl.lit(digest).alias("digest"),
        pl.lit(datetime.now(UTC), dtype=pl.Datetime("us", "UTC")).alias("ingested_at"),
    )


class KeyMemory:
    """The newest keys of a table, so that a repeated event is known as it comes.

    Two generations: when the younger one is full the older one is forgotten as a whole, so that
    at least the newest half of `limit` is known.
    """

    def __init__(self, table: Table, *, limit: int = MAX_KEYS) -> None:
        self._table = table
        self._limit = limit // 2
        self._old: set[Any] = set()
        self._young: set[Any] = set()
        self._whole_up_to: int | None = None

    def seed(self, folder: tables.TableFolder) -> None:
        """Learn the keys of the table's newest rows."""
        self._old, self._young = set(), set()
        version = folder.version()
        self._whole_up_to = NO_VERSION if version is None else version
        if not self._table.key or version is None:
            return
        scan = folder.scan(version)
        time = pl.col(self._table.event_time)
        newest = cast(datetime | None, scan.select(time.max()).collect().item())
        reach: timedelta | None = _FIRST_LOOK
        while newest is not None:
            # A part of the table that is known to be newest is read without the rest.
            near = scan if reach is None else scan.filter(time > newest - reach)
            rows = near.select(*self._table.key, time.alias("__at")).top_k(self._limit, by="__at")
            found = rows.collect()
            if reach is None or found.height == self._limit:
                self._old = set(self._values(found))
                if found.height == self._limit:
                    self._whole_up_to = None
                return
            reach = None if reach > 100 * _FIRST_LOOK else 10 * reach

    def has_all_of(self, version: int) -> bool:
        """Whether every key of that version is held, or there are none to hold."""
        return not self._table.key or self._whole_up_to == version

    def landed(self, before: int, version: int) -> None:
        """Hear that keys which are held became a version, after another one."""
        self._whole_up_to = version if self._whole_up_to == before else None

    def take(self, rows: pl.DataFrame) -> list[int]:
        """Remember the rows' keys; give the places of the rows whose keys were known."""
        if not self._table.key:
            return []
        known: list[int] = []
        for place, key in enumerate(self._values(rows)):
            if key in self._young or key in self._old:
                known.append(place)
            else:
                self._young.add(key)
        if len(self._young) >= self._limit:
            if self._old:
                self._whole_up_to = None
            self._old, self._young = self._young, set()
        return known

    def _values(self, rows: pl.DataFrame) -> list[Any]:
        names = list(self._table.key)
        return rows[names[0]].to_list() if len(names) == 1 else rows.select(names).rows()
