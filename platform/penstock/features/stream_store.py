"""Where states live: beside the online rows, as bytes under a key.

Rows and states go down together when the store does: a store that lost its rows lost its states
and the stream's notes with them, which is how a stream sees that it has to make them again.
"""

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

from feast.repo_config import RepoConfig

from penstock.errors import SettingsError
from penstock.features.sqlite_online_store import open_file

# SQLite's own limit on parameters is 32,766 since 3.32; a read stays far below it.
_KEYS_PER_READ = 4_096
# Redis serves others between two commands: each must end within a few milliseconds.
_KEYS_PER_COMMAND = 250
_COMMANDS_PER_PIPELINE = 8
# SQLite moves its log into the file in pieces of 4 MB unless told otherwise; states are larger
# than rows, and each move waits for the disk.
_LOG_PAGES = 8_000


class StateStore(Protocol):
    """Bytes under keys, in the online store."""

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give the value under each key; None where there is none."""

    def write(self, values: Mapping[bytes, bytes], *, durable: bool = False) -> None:
        """Write the values in their order: one that is there has all before it.

        Args:
            values: by key.
            durable: also survive a power cut, with all that was written before, rows included.
                A Redis is as durable as it was set up to be.
        """

    def replace(self, key: bytes, value: bytes, *, durable: bool = False) -> bool:
        """Write the value where there is one under the key; False: there is none."""

    def close(self) -> None:
        """Let go of connections."""


def open_states(config: RepoConfig) -> StateStore:
    """Open the online store of the configuration for states."""
    return RedisStates(config) if _is_redis(config) else SqliteStates(config)


def unavailable_errors(config: RepoConfig) -> tuple[type[Exception], ...]:
    """What is raised while the store does not answer; the same call may work later."""
    if not _is_redis(config):
        return (sqlite3.OperationalError,)
    from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError

    return BusyLoadingError, ConnectionError, TimeoutError


def _is_redis(config: RepoConfig) -> bool:
    return hasattr(config.online_store, "connection_string")


class SqliteStates:
    """States in a table of the online store's file."""

    def __init__(self, config: RepoConfig) -> None:
        self._connection = open_file(config)
        self._connection.execute(f"PRAGMA wal_autocheckpoint = {_LOG_PAGES}")
        with self._connection:
            self._connection.execute(
                "CREATE TABLE IF NOT EXISTS penstock_streams "
                "(key BLOB PRIMARY KEY, value BLOB NOT NULL)"
            )

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give the value under each key; None where there is none."""
        found: dict[bytes, bytes] = {}
        for start in range(0, len(keys), _KEYS_PER_READ):
            part = keys[start : start + _KEYS_PER_READ]
            marks = ", ".join("?" * len(part))
            # S608: nothing but question marks is put in.
            query = f"SELECT key, value FROM penstock_streams WHERE key IN ({marks})"  # noqa: S608
            found.update(self._connection.execute(query, part))
        return [found.get(key) for key in keys]

    def write(self, values: Mapping[bytes, bytes], *, durable: bool = False) -> None:
        """Write the values in one transaction."""
        with self._transaction(durable=durable):
            self._connection.executemany(
                "INSERT INTO penstock_streams (key, value) VALUES (?, ?) "
                "ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                values.items(),
            )

    def replace(self, key: bytes, value: bytes, *, durable: bool = False) -> bool:
        """Write the value where there is one under the key; False: there is none."""
        with self._transaction(durable=durable):
            update = "UPDATE penstock_streams SET value = ? WHERE key = ?"
            return self._connection.execute(update, (value, key)).rowcount > 0

    @contextlib.contextmanager
    def _transaction(self, *, durable: bool) -> Iterator[None]:
        if durable:
            # All that was committed before lies before it in the same log.
            self._connection.execute("PRAGMA synchronous = FULL")
        try:
            with self._connection:
                yield
        finally:
            if durable:
                self._connection.execute("PRAGMA synchronous = NORMAL")

    def close(self) -> None:
        """Close the file."""
        self._connection.close()


class RedisStates:
    """States under keys of their own in the online store's Redis."""

    def __init__(self, config: RepoConfig) -> None:
        from feast.infra.online_stores.redis import RedisOnlineStore

        self._client: Any = RedisOnlineStore()._get_client(config.online_store)
        memory = self._client.info("memory")
        policy = str(memory.get("maxmemory_policy"))
        if memory.get("maxmemory") and policy.startswith("allkeys"):
            raise SettingsError(
                f"the Redis of the online store drops keys when it is full ({policy}): a state "
                "that is gone would be taken for an entity without events",
                allowed="maxmemory-policy noeviction, or a volatile one",
                next_step="change it, or give the online store a Redis of its own",
            )

    def read(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """Give the value under each key; None where there is none."""
        values: list[bytes | None] = []
        for start in range(0, len(keys), _KEYS_PER_COMMAND):
            values += self._client.mget(keys[start : start + _KEYS_PER_COMMAND])
        return values

    def write(self, values: Mapping[bytes, bytes], *, durable: bool = False) -> None:
        """Write the values in their order."""
        parts = _parts(values)
        while some := list(islice(parts, _COMMANDS_PER_PIPELINE)):
            with self._client.pipeline(transaction=False) as pipe:
                for part in some:
                    pipe.mset(part)
                pipe.execute()

    def replace(self, key: bytes, value: bytes, *, durable: bool = False) -> bool:
        """Write the value where there is one under the key; False: there is none."""
        return bool(self._client.set(key, value, xx=True))

    def close(self) -> None:
        """Close the connections."""
        self._client.close()


def _parts(values: Mapping[bytes, bytes]) -> Iterator[dict[bytes, bytes]]:
    items = iter(values.items())
    while part := dict(islice(items, _KEYS_PER_COMMAND)):
        yield part
