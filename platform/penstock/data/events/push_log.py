"""A durable log of the events that were pushed over HTTP, until a stream has them in its table.

It lives in a database that the settings have already: a file of its own, or the server of Feast's
registry. A table's events are one log whose sequence numbers rise without a gap, and one body's
events lie in one row. A body that comes again within a day, and within two million events, is known
by its digest.
"""

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import sqlalchemy
from sqlalchemy import BigInteger, Column, Float, LargeBinary, String, text

from penstock.data.durable_database import DurableDatabase
from penstock.settings import Settings

MAX_WAITING_EVENTS = 1_000_000
MAX_WAITING_BYTES = 1 << 30
_DIGEST_LIFE_S = 24 * 3600.0
_DIGEST_LIFE_EVENTS = 2_000_000
_DIGESTS_PER_TRIM = 100_000
_BODIES_PER_READ = 32

_metadata = sqlalchemy.MetaData()
_heads = sqlalchemy.Table(
    "penstock_push_heads",
    _metadata,
    Column("table_name", String(300), primary_key=True),
    # A log that was lost and made anew must not pass for the one that a table has read.
    Column("log_id", String(32), nullable=False),
    Column("next_sequence", BigInteger, nullable=False),
    Column("first_sequence", BigInteger, nullable=False),
    Column("waiting_bytes", BigInteger, nullable=False),
)
_bodies = sqlalchemy.Table(
    "penstock_pushed_bodies",
    _metadata,
    Column("table_name", String(300), primary_key=True),
    Column("last_sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("num_events", BigInteger, nullable=False),
    Column("events", LargeBinary, nullable=False),
)
_digests = sqlalchemy.Table(
    "penstock_pushed_digests",
    _metadata,
    Column("table_name", String(300), primary_key=True),
    Column("digest", LargeBinary, primary_key=True),
    Column("last_sequence", BigInteger, nullable=False),
    Column("pushed_at_s", Float, nullable=False),
    sqlalchemy.Index("penstock_pushed_digests_in_order", "table_name", "last_sequence"),
)


@dataclass(frozen=True, slots=True)
class Pushed:
    """One body: the events that it holds, each one JSON object without a line end, and its name."""

    table: str
    events: Sequence[bytes]
    digest: bytes


class Full(NamedTuple):
    """Why a body was not taken."""

    num_waiting: int


class Head(NamedTuple):
    """Where a table's log begins and ends."""

    log_id: str
    first_sequence: int
    next_sequence: int


class PushLog:
    """Appends bodies, reads them in order, and forgets what a table has."""

    def __init__(
        self,
        url: str,
        *,
        max_waiting_events: int = MAX_WAITING_EVENTS,
        max_waiting_bytes: int = MAX_WAITING_BYTES,
    ) -> None:
        """Open the log; its tables are made where they are absent.

        Args:
            url: SQLAlchemy's, of a SQLite file or a Postgres server.
            max_waiting_events: when more events of a table wait, no further body is taken.
            max_waiting_bytes: the same for their bytes.
        """
        self._max_waiting_events = max_waiting_events
        self._max_waiting_bytes = max_waiting_bytes
        self._database = DurableDatabase(url, _metadata, what="pushed events")

    @classmethod
    def of(cls, settings: Settings) -> "PushLog":
        """Open the log that the settings name."""
        return cls(settings.push_log_url)

    def append(self, bodies: Sequence[Pushed]) -> list[int | Full]:
        """Write bodies in one transaction; it is on disk when this returns.

        Returns:
            For each body the sequence number of its last event, the former one where the body is
            known by its digest; or that the log is full.
        """
        by_table: dict[str, list[int]] = {}
        for place, body in enumerate(bodies):
            by_table.setdefault(body.table, []).append(place)
        answers: dict[int, int | Full] = {}
        with self._database.writing() as connection:
            # In one order, so that no two writers wait for each other.
            for table in sorted(by_table):
                places = by_table[table]
                written = self._append_to(connection, table, [bodies[place] for place in places])
                answers.update(zip(places, written, strict=True))
        return [answers[place] for place in range(len(bodies))]

    def _append_to(self, connection: Any, table: str, bodies: Sequence[Pushed]) -> list[int | Full]:
        _, first, following, num_bytes = _locked_head(connection, table)
        digests = [body.digest for body in bodies]
        known = {
            bytes(row.digest): row.last_sequence
            for row in connection.execute(
                sqlalchemy.select(_digests.c.digest, _digests.c.last_sequence).where(
                    _digests.c.table_name == table, _digests.c.digest.in_(digests)
                )
            )
        }
        rows: list[tuple[Pushed, bytes, int]] = []
        answers: list[int | Full] = []
        for body in bodies:
            joined = b"\n".join(body.events)
            num_waiting = following - first
            if body.digest in known:
                answers.append(known[body.digest])
                continue
            # An empty log takes any body: one that is alone too large would never get in.
            if num_waiting and (
                num_waiting + len(body.events) > self._max_waiting_events
                or num_bytes + len(joined) > self._max_waiting_bytes
            ):
                answers.append(Full(num_waiting))
                continue
            following += len(body.events)
            num_bytes += len(joined)
            known[body.digest] = following - 1
            answers.append(following - 1)
            rows.append((body, joined, following - 1))
        if rows:
            _insert(connection, table, rows)
            connection.execute(
                _heads.update()
                .where(_heads.c.table_name == table)
                .values(next_sequence=following, waiting_bytes=num_bytes)
            )
        return answers

    def head(self, table: str) -> Head:
        """Say where the table's log begins and ends; the log is begun where it is absent."""
        with self._database.writing() as connection:
            found = connection.execute(
                sqlalchemy.select(
                    _heads.c.log_id, _heads.c.first_sequence, _heads.c.next_sequence
                ).where(_heads.c.table_name == table)
            ).one_or_none()
            if found is None:
                return Head(*_locked_head(connection, table)[:3])
            return Head(*found)

    def read(self, table: str, position: int, max_events: int) -> list[tuple[int, bytes]]:
        """Read events from a sequence number on, in order: whole bodies, so a few more may come."""
        found: list[tuple[int, bytes]] = []
        query = (
            sqlalchemy.select(_bodies.c.last_sequence, _bodies.c.num_events, _bodies.c.events)
            .where(_bodies.c.table_name == table, _bodies.c.last_sequence >= position)
            .order_by(_bodies.c.last_sequence)
            .limit(max_events)
        )
        with self._database.reading() as connection:
            # In small parts: the last of many large bodies need not come into memory.
            parts = connection.execution_options(yield_per=_BODIES_PER_READ).execute(query)
            for last, num_events, joined in parts:
                start = last - num_events + 1
                events = bytes(joined).split(b"\n")
                found += [(start + i, e) for i, e in enumerate(events) if start + i >= position]
                if len(found) >= max_events:
                    parts.close()
                    break
        return found

    def trim(self, table: str, position: int) -> None:
        """Forget the bodies that lie whole below the position, and old digests."""
        with self._database.writing() as connection:
            _, first, following, num_bytes = _locked_head(connection, table)
            done = (_bodies.c.table_name == table) & (_bodies.c.last_sequence < position)
            length = sqlalchemy.func.length(_bodies.c.events)
            freed = connection.execute(
                sqlalchemy.select(sqlalchemy.func.coalesce(sqlalchemy.func.sum(length), 0)).where(
                    done
                )
            ).scalar_one()
            connection.execute(_bodies.delete().where(done))
            connection.execute(
                _heads.update()
                .where(_heads.c.table_name == table)
                .values(
                    first_sequence=max(first, min(position, following)),
                    waiting_bytes=max(0, num_bytes - freed),
                )
            )
            _forget_digests(connection, table, min(position, following), following)

    def close(self) -> None:
        """Close the connections."""
        self._database.close()


def _locked_head(connection: Any, table: str) -> tuple[str, int, int, int]:
    """Give the head, which no other writer changes before this transaction ends.

    It is a write, so SQLite takes the file's lock with it and Postgres the row's: sequence numbers
    become visible in their order.
    """
    lock = (
        _heads.update()
        .where(_heads.c.table_name == table)
        .values(next_sequence=_heads.c.next_sequence)
        .returning(
            _heads.c.log_id,
            _heads.c.first_sequence,
            _heads.c.next_sequence,
            _heads.c.waiting_bytes,
        )
    )
    found = connection.execute(lock).one_or_none()
    if found is None:
        connection.execute(
            text(
                "INSERT INTO penstock_push_heads VALUES (:name, :id, 0, 0, 0) "
                "ON CONFLICT DO NOTHING"
            ),
            {"name": table, "id": secrets.token_hex(4)},
        )
        found = connection.execute(lock).one()
    return tuple(found)


def _forget_digests(connection: Any, table: str, position: int, following: int) -> None:
    """Forget digests of yesterday and of long ago, some at a time; what still waits stays known."""
    oldest = (
        sqlalchemy.select(_digests.c.last_sequence, _digests.c.pushed_at_s)
        .where(_digests.c.table_name == table, _digests.c.last_sequence < position)
        .order_by(_digests.c.last_sequence)
        .limit(_DIGESTS_PER_TRIM)
        .subquery()
    )
    is_old = (oldest.c.pushed_at_s < time.time() - _DIGEST_LIFE_S) | (
        oldest.c.last_sequence < following - _DIGEST_LIFE_EVENTS
    )
    newest_old = sqlalchemy.select(sqlalchemy.func.max(oldest.c.last_sequence)).where(is_old)
    last = connection.execute(newest_old).scalar_one()
    if last is not None:
        connection.execute(
            _digests.delete().where(
                _digests.c.table_name == table, _digests.c.last_sequence <= last
            )
        )


def _insert(connection: Any, table: str, rows: Sequence[tuple[Pushed, bytes, int]]) -> None:
    now_s = time.time()
    connection.execute(
        _bodies.insert(),
        [
            {
                "table_name": table,
                "last_sequence": last,
                "num_events": len(body.events),
                "events": joined,
            }
            for body, joined, last in rows
        ],
    )
    connection.execute(
        _digests.insert(),
        [
            {
                "table_name": table,
                "digest": body.digest,
                "last_sequence": last,
                "pushed_at_s": now_s,
            }
            for body, _, last in rows
        ],
    )
