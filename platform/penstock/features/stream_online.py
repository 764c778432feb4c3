"""Brings a micro-batch online: the states of its entities first, then their rows.

A state that is written is a decision: an event below its position was counted. So an event that
comes again after a kill is not counted twice, and its entity's row is computed from the state and
written again, whether it had been written or not.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
import polars as pl
from feast import FeatureView
from feast.repo_config import RepoConfig

from penstock.data.checks import ROW
from penstock.features import entity_keys
from penstock.features.newest_rows import blocks, source_of
from penstock.features.online_rows import RowStore
from penstock.features.stream_entries import Ints, partition_id
from penstock.features.stream_state import Applied, Arrivals, apply
from penstock.features.stream_store import StateStore
from penstock.features.stream_table import SOURCE
from penstock.features.stream_targets import Target, Targets

NEXT = "__next"
"""The column of kept rows that holds the position after them."""
_ENTITIES_PER_BLOCK = 20_000


@dataclass(frozen=True)
class Notes:
    """What a stream writes down beside its states, each under a key of its own."""

    states: StateStore
    prefix: bytes

    def read(self, name: str) -> dict[str, Any]:
        """Read a note; empty where there is none."""
        [found] = self.states.read([self.key(name)])
        note: dict[str, Any] = orjson.loads(found) if found else {}
        return note

    def key(self, name: str) -> bytes:
        """Where a note lives."""
        return self.prefix + b"note:" + name.encode()

    def write(self, name: str, note: Mapping[str, object], *, durable: bool = False) -> None:
        """Write a note."""
        self.states.write({self.key(name): orjson.dumps(note)}, durable=durable)

    def replace(self, name: str, note: Mapping[str, object], *, durable: bool = False) -> bool:
        """Write a note over the one that is there; False: there is none."""
        return self.states.replace(self.key(name), orjson.dumps(note), durable=durable)


def notes_of(config: RepoConfig, states: StateStore, table: str) -> Notes:
    """The notes of the stream of a table."""
    return Notes(states, f"penstock:stream:{config.project}:{table}:".encode())


class OnlineSide:
    """The online store as one stream sees it."""

    def __init__(
        self, config: RepoConfig, rows: RowStore, states: StateStore, targets: Targets
    ) -> None:
        self._config = config
        self._rows = rows
        self._states = states
        self._targets = targets

    def apply(
        self,
        kept: pl.DataFrame,
        notes: Mapping[bytes, bytes],
        *,
        generation: int,
        floors: Mapping[int, int],
    ) -> None:
        """Count the events and write the rows of their entities.

        Args:
            kept: the contract's columns, `SOURCE`, `ROW` and `NEXT`: the place of each event.
            notes: written before the states.
            generation: states of any other are taken for absent.
            floors: by `partition_id`, up to where the table has each partition.
        """
        writes = dict(notes)
        rows: list[tuple[Target, pl.DataFrame]] = []
        for target in self._targets.windowed:
            keys, entities, arrivals = self._arrivals(target, kept)
            if not keys:
                continue
            stored = self._states.read(keys)
            done = apply(target.layout, stored, arrivals, generation=generation, floors=floors)
            changed = np.unique(arrivals.owner[done.is_new]).tolist()
            writes.update({keys[rank]: done.states[rank] for rank in changed})
            rows.append((target, _feature_rows(target, entities, done)))
        self._states.write(writes)
        for target, frame in rows:
            for view in target.views:
                self._write(view, frame)
        for view in self._targets.plain:
            self._write(view, newest_events(view, kept))

    def make_again(self, target: Target, events: pl.DataFrame, *, generation: int) -> None:
        """Write states and rows of all entities of the events, from nothing but them."""
        for block in _by_entities(events, target.entity):
            placed = block.with_columns(
                pl.lit("").alias(SOURCE),
                pl.lit(0, dtype=pl.Int64).alias(ROW),
                pl.lit(1, dtype=pl.Int64).alias(NEXT),
            )
            keys, entities, arrivals = self._arrivals(target, placed)
            # The table has all of them: no position is remembered.
            done = apply(
                target.layout,
                [None] * len(keys),
                arrivals,
                generation=generation,
                floors={partition_id(""): 1},
            )
            self._states.write(dict(zip(keys, done.states, strict=True)))
            frame = _feature_rows(target, entities, done)
            for view in target.views:
                self._write(view, frame, over_newer=True)

    def replace_plain(self, view: FeatureView, scan: pl.LazyFrame, events: pl.DataFrame) -> None:
        """Write the rows of these events' entities again, as the table has them."""
        keys = _stored_keys(view)
        some = events.select(keys).unique().lazy()
        rows = scan.join(some, on=keys, how="semi").collect()
        self._write(view, newest_events(view, rows), over_newer=True)

    def _arrivals(
        self, target: Target, kept: pl.DataFrame
    ) -> tuple[list[bytes], pl.DataFrame, Arrivals]:
        """The keys of the entities' states, the entities by rank, and their events."""
        columns = [*target.table.windows.source_columns(), SOURCE, ROW, NEXT]
        # Nobody can look up a row without an entity.
        events = kept.select(columns).drop_nulls(target.entity)
        entities = events.select(target.entity).unique(maintain_order=True)
        owner = _ranks(events, entities, target.entity)
        prefix = f"penstock:stream:{self._config.project}:{target.table.name}:state:".encode()
        columns_of_key = {name: entities[name].to_list() for name in target.entity}
        keys = [prefix + key for key in entity_keys.encode(columns_of_key)]
        names = events[SOURCE].unique().to_list()
        partition = events[SOURCE].replace_strict(
            names, [partition_id(name) for name in names], return_dtype=pl.UInt64
        )
        return (
            keys,
            entities,
            Arrivals(
                owner=owner,
                time_us=events[target.event_time].to_physical().to_numpy(),
                values={name: events[name] for name in target.layout.needs},
                partition=partition.to_numpy(),
                offset=events[ROW].to_numpy(),
                next_offset=events[NEXT].to_numpy(),
            ),
        )

    def _write(self, view: FeatureView, frame: pl.DataFrame, *, over_newer: bool = False) -> None:
        named = frame.rename(source_of(view).field_mapping, strict=False)
        write = self._rows.replace_rows if over_newer else self._rows.write_rows
        for block in blocks(view, named):
            write(self._config, view, block)


def _feature_rows(target: Target, entities: pl.DataFrame, done: Applied) -> pl.DataFrame:
    newest = pl.Series(target.event_time, done.newest_us).cast(pl.Datetime("us", "UTC"))
    return entities.with_columns(newest, **done.features)


def newest_events(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """The newest event of each entity, as a view of the raw table shows it."""
    keys = _stored_keys(view)
    ordered = rows.drop_nulls(keys).sort(source_of(view).timestamp_field, maintain_order=True)
    return ordered.unique(keys, keep="last", maintain_order=True)


def _stored_keys(view: FeatureView) -> list[str]:
    stored = {name: column for column, name in source_of(view).field_mapping.items()}
    return [stored.get(key, key) for key in view.join_keys]


def _ranks(events: pl.DataFrame, entities: pl.DataFrame, names: list[str]) -> Ints:
    ranked = entities.with_row_index("__rank")
    joined = events.select(names).join(ranked, on=names, how="left", maintain_order="left")
    ranks: Ints = joined["__rank"].cast(pl.Int64).to_numpy()
    return ranks


def _by_entities(events: pl.DataFrame, names: list[str]) -> Iterator[pl.DataFrame]:
    """All events of some entities at a time."""
    if not events.height:
        return
    entities = events.select(names).unique()
    if entities.height <= _ENTITIES_PER_BLOCK:
        yield events
        return
    for some in entities.iter_slices(_ENTITIES_PER_BLOCK):
        yield events.join(some, on=names, how="semi")
