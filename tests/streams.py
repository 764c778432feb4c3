"""Streams in tests: a log of events in memory, and what the online store and batch say."""

from collections.abc import Callable, Mapping, Sequence
from typing import cast

import orjson
import polars as pl
from feast.infra.online_stores.helpers import get_online_store_from_config

from payments import TRANSACTIONS, USE_CASE
from penstock.data import tables
from penstock.data.events import Event
from penstock.features import entity_keys, windows
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.online_rows import RowStore
from penstock.features.store import repo_config
from penstock.settings import Settings

VIEWS = {
    "card_fraud_customer": "card_fraud.customer_windows",
    "card_fraud_terminal": "card_fraud.terminal_windows",
}


class MemoryLog:
    """Partitions of events that outlive the streams that read them."""

    def __init__(self, **partitions: Sequence[bytes]) -> None:
        self.partitions = {name: list(values) for name, values in partitions.items()}
        self.committed: dict[str, int] = {}

    def source(self) -> "MemorySource":
        return MemorySource(self)


class MemorySource:
    """Reads a log from given positions, one partition after the other."""

    def __init__(self, log: MemoryLog, at_once: int = 10**6) -> None:
        self._log = log
        self._at_once = at_once
        self._next: dict[str, int] = {}
        self.before_revoke: Callable[[], None] = lambda: None

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        self._next = {name: positions.get(name, 0) for name in self._log.partitions}
        self.before_revoke = before_revoke

    def poll(self, max_events: int, _wait_s: float) -> list[Event]:
        events: list[Event] = []
        limit = min(max_events, self._at_once)
        for name, values in self._log.partitions.items():
            start = self._next[name]
            some = values[start : start + limit - len(events)]
            events += [Event(name, start + n, start + n + 1, v) for n, v in enumerate(some)]
            self._next[name] = start + len(some)
        return events

    def commit(self, positions: Mapping[str, int]) -> None:
        self._log.committed = dict(positions)

    def lag(self) -> int | None:
        return sum(len(v) - self._next[name] for name, v in self._log.partitions.items())

    def close(self) -> None:
        pass


def messages(payments: pl.DataFrame) -> list[bytes]:
    """Payments as JSON objects."""
    texts = payments.with_columns(pl.col("TX_DATETIME").dt.strftime("%Y-%m-%dT%H:%M:%S%.fZ"))
    return [orjson.dumps(row) for row in texts.iter_rows(named=True)]


def online_rows(settings: Settings) -> dict[str, dict[int, tuple]]:
    """By view and entity of the raw table: event time in microseconds, and the features."""
    config = repo_config(settings)
    store = cast(RowStore, get_online_store_from_config(config.online_store))
    raw = tables.scan(settings, TRANSACTIONS).collect()
    views = load_feature_objects(settings, USE_CASE).views
    found = {}
    for name, feature_table in VIEWS.items():
        declared = load_feature_tables(settings, USE_CASE)[feature_table].windows
        [entity] = declared.entity
        entities = raw[entity].unique().sort().to_list()
        keys = entity_keys.encode({entity: entities})
        read = store.read_rows(config, views[name], keys, list(declared.feature_names()))
        found[name] = {
            who: (at, *values)
            for who, at, values in zip(
                entities, read.event_us.tolist(), read.values.tolist(), strict=True
            )
        }
    store.disconnect()
    return found


def batch_rows(settings: Settings) -> dict[str, dict[int, tuple]]:
    """The same as batch computes it from the raw table."""
    raw = tables.scan(settings, TRANSACTIONS).collect()
    found = {}
    for name, feature_table in VIEWS.items():
        declared = load_feature_tables(settings, USE_CASE)[feature_table].windows
        [entity] = declared.entity
        rows = windows.compute(raw, declared).sort(declared.event_time, maintain_order=True)
        newest = rows.unique(entity, keep="last").with_columns(
            pl.col(declared.event_time).to_physical()
        )
        features = [pl.col(name).cast(pl.Float64) for name in declared.feature_names()]
        columns = newest.select(entity, declared.event_time, *features)
        found[name] = {row[0]: row[1:] for row in columns.iter_rows()}
    return found


def assert_online_is_batch(settings: Settings) -> None:
    online, batch = online_rows(settings), batch_rows(settings)
    for view, rows in batch.items():
        for who, (at, *values) in rows.items():
            online_at, *online_values = online[view][who]
            assert online_at == at, (view, who)
            for one, other in zip(online_values, values, strict=True):
                assert abs(one - other) <= 1e-9 * max(1.0, abs(other)), (view, who, one, other)
