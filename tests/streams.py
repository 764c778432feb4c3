"""Streams in tests: a log of events in memory, and what the online store and batch say."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import orjson
import polars as pl
from feast import FeatureView
from feast.infra.online_stores.helpers import get_online_store_from_config

from payments import TRANSACTIONS
from penstock.data import tables
from penstock.data.events import Event
from penstock.features import entity_keys, windows
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.online_rows import RowStore
from penstock.features.store import repo_config
from penstock.features.windows import Windows
from penstock.settings import Settings
from penstock.use_cases import split_name


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


@dataclass(frozen=True)
class _Shown:
    """A view of a feature table that is made from the raw one."""

    view: FeatureView
    windows: Windows
    raw: pl.DataFrame

    @property
    def entity(self) -> str:
        [entity] = self.windows.entity
        return entity


def _shown(settings: Settings, table: str) -> dict[str, _Shown]:
    use_case, _ = split_name(table)
    raw = tables.scan(settings, table).collect()
    feature_tables = load_feature_tables(settings, use_case)
    return {
        name: _Shown(view, feature_tables[view.batch_source.table].windows, raw)
        for name, view in load_feature_objects(settings, use_case).views.items()
    }


def online_rows(settings: Settings, table: str = TRANSACTIONS) -> dict[str, dict[Any, tuple]]:
    """By view and entity of the raw table: event time in microseconds, and the features."""
    config = repo_config(settings)
    store = cast(RowStore, get_online_store_from_config(config.online_store))
    found = {}
    for name, shown in _shown(settings, table).items():
        entities = shown.raw[shown.entity].unique().sort().to_list()
        keys = entity_keys.encode({shown.entity: entities})
        features = list(shown.windows.feature_names())
        read = store.read_rows(config, shown.view, keys, features)
        rows = zip(entities, read.event_us.tolist(), read.values.tolist(), strict=True)
        found[name] = {who: (at, *values) for who, at, values in rows}
    store.disconnect()
    return found


def batch_rows(settings: Settings, table: str = TRANSACTIONS) -> dict[str, dict[Any, tuple]]:
    """The same as batch computes it from the raw table."""
    found = {}
    for name, shown in _shown(settings, table).items():
        time = shown.windows.event_time
        rows = windows.compute(shown.raw, shown.windows).sort(time, maintain_order=True)
        newest = rows.unique(shown.entity, keep="last")
        columns = newest.select(
            shown.entity,
            pl.col(time).to_physical(),
            *(pl.col(name).cast(pl.Float64) for name in shown.windows.feature_names()),
        )
        found[name] = {row[0]: row[1:] for row in columns.iter_rows()}
    return found


def assert_online_is_batch(settings: Settings, table: str = TRANSACTIONS) -> None:
    online, batch = online_rows(settings, table), batch_rows(settings, table)
    for view, rows in batch.items():
        for who, (at, *values) in rows.items():
            online_at, *online_values = online[view][who]
            assert online_at == at, (view, who)
            wanted = [math.nan if value is None else value for value in values]
            np.testing.assert_allclose(
                online_values, wanted, rtol=1e-9, atol=1e-9, err_msg=f"{view}, {who}"
            )
