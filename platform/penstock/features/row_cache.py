"""Rows of the online store kept in a replica's memory, until they are written or too old.

A store says which rows were written since it was last asked; those are dropped before anything is
answered. The age is a second guard, for what a store could not say.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from feast import FeatureView
from feast.repo_config import RepoConfig
from numpy.typing import NDArray

from penstock.features.online_rows import NO_EVENT_US, ReadRows, RowStore

MAX_ROWS = 200_000
"""Rows that are kept, of all views; the one that came first goes first."""


class Changes(Protocol):
    """Says what was written to a store."""

    def take(self) -> Sequence[bytes] | None:
        """Give the entity keys that were written since the last call; None: any may have been.

        Called before a read. What is written after that must be in a later answer.
        """

    def close(self) -> None:
        """Stop looking."""


class WatchedStore(RowStore, Protocol):
    """A store that can say what was written to it."""

    def watch(self, config: RepoConfig) -> Changes:
        """Look at writes, of whatever process, from now on."""


@dataclass(slots=True)
class _Kept:
    event_us: int
    values: NDArray[np.float64]
    until_s: float


@dataclass
class CacheCounts:
    """How many rows were in the cache, and how many were not."""

    num_hits: int = 0
    num_misses: int = 0


@dataclass
class RowCache:
    """Stands before a store's reads. One batch at a time, as `OnlineReader`."""

    store: WatchedStore
    max_age_s: float
    max_rows: int = MAX_ROWS
    now_s: Callable[[], float] = time.monotonic
    counts: CacheCounts = field(default_factory=CacheCounts)
    _kept: dict[tuple[str, bytes], _Kept] = field(default_factory=dict)
    _views: set[str] = field(default_factory=set)
    _changes: Changes | None = None

    def read_rows(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[bytes], features: Sequence[str]
    ) -> ReadRows:
        """Read as the store does; always the same features of a view."""
        self._drop_written(config)
        self._views.add(view.name)
        now_s = self.now_s()
        event_us = np.full(len(keys), NO_EVENT_US, dtype=np.int64)
        values = np.full((len(keys), len(features)), np.nan)
        absent: list[int] = []
        for place, key in enumerate(keys):
            kept = self._kept.get((view.name, key))
            if kept is None or kept.until_s < now_s:
                absent.append(place)
            else:
                event_us[place] = kept.event_us
                values[place] = kept.values
        self.counts.num_hits += len(keys) - len(absent)
        self.counts.num_misses += len(absent)
        if absent:
            wanted = [keys[place] for place in absent]
            read = self.store.read_rows(config, view, wanted, features)
            event_us[absent] = read.event_us
            values[absent] = read.values
            self._keep(view.name, wanted, read, now_s + self.max_age_s)
        return ReadRows(event_us=event_us, values=values)

    def _keep(self, view: str, keys: Sequence[bytes], read: ReadRows, until_s: float) -> None:
        for key, event_us, values in zip(keys, read.event_us.tolist(), read.values, strict=True):
            # An entity that nobody knows may be anything that a caller makes up.
            if event_us != NO_EVENT_US:
                self._kept.pop((view, key), None)
                # A view of the batch's block would keep all of it.
                self._kept[view, key] = _Kept(event_us, values.copy(), until_s)
        while len(self._kept) > self.max_rows:
            del self._kept[next(iter(self._kept))]

    def _drop_written(self, config: RepoConfig) -> None:
        if self._changes is None:
            self._changes = self.store.watch(config)
        written = self._changes.take()
        if written is None:
            self._kept.clear()
            return
        for key in written:
            for view in self._views:
                self._kept.pop((view, key), None)

    def disconnect(self) -> None:
        """Let go of what looks at the store, and of the store."""
        if self._changes is not None:
            self._changes.close()
            self._changes = None
        self._kept.clear()
        self.store.disconnect()

    def __getattr__(self, name: str) -> Any:
        """Everything else is the store's."""
        return getattr(self.store, name)
