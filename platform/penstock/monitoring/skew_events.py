"""The events behind window features: what else a served value may have been made from.

Asked only about cells whose row is the same on both sides and whose values differ all the same.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import numpy as np
import polars as pl

from penstock.data import tables
from penstock.data.contracts import load_tables
from penstock.features.declarations import FeatureTable
from penstock.features.stream_declarations import Stream
from penstock.features.stream_state import EXACT_ENTRIES
from penstock.features.windows import Aggregation, Windows
from penstock.monitoring.skew_policy import (
    EntityEvents,
    Reason,
    WindowCell,
    is_within_resolution,
    is_without_late_events,
)
from penstock.settings import Settings
from penstock.use_cases import split_name

_TIME, _KNOWN = "__time_us", "__known"
_MICROSECOND = timedelta(microseconds=1)
# Each takes two readings of the source table.
_MAX_VERSIONS = 16


@dataclass(frozen=True, kw_only=True)
class DifferingCell:
    """A window feature that was served from the same row and differs from it."""

    entity: tuple[Any, ...]
    """In the order of the feature table's entity columns."""
    feature: str
    """The feature table's column."""
    row_us: int
    """The event time of the row."""
    served: float
    served_at: datetime


class EventsBehind:
    """The events that one feature table was computed from."""

    def __init__(self, settings: Settings, table: FeatureTable, stream: Stream | None) -> None:
        self.name = table.name
        self._settings = settings
        self._table = table
        self._stream = stream
        self._windows = table.windows
        declared = load_tables(settings, split_name(table.source)[0])
        self._key = declared[table.source].key if table.source in declared else ()
        self._num_versions = tables.latest(settings, table.source).version + 1
        self._commit_times: dict[int, datetime] = {}
        names = self._windows.feature_names()
        shapes = [(w, a) for w in self._windows.widths.values() for a in self._windows.aggregations]
        self._shapes: Mapping[str, tuple[timedelta, Aggregation]] = dict(
            zip(names, shapes, strict=True)
        )

    def explain(self, cells: Sequence[DifferingCell]) -> list[Reason]:
        """Find for each cell why its value differs."""
        by_version: dict[int, list[int]] = {}
        versions = _at_most([self._version_at(cell.served_at) for cell in cells], _MAX_VERSIONS)
        for number, version in enumerate(versions):
            by_version.setdefault(version, []).append(number)
        reasons: list[Reason] = ["unexplained"] * len(cells)
        for version, numbers in by_version.items():
            some = [cells[number] for number in numbers]
            events = self._read(some, version)
            for number, cell in zip(numbers, some, strict=True):
                if cell.feature in self._shapes and cell.entity in events:
                    reasons[number] = self._explain_one(cell, events[cell.entity])
        return reasons

    def _explain_one(self, cell: DifferingCell, known: "_Events") -> Reason:
        width, aggregation = self._shapes[cell.feature]
        column = aggregation.column
        events = EntityEvents(
            time_us=known.time_us,
            values=None if column is None else known.values[column],
            maybe_unseen=known.maybe_unseen,
        )
        window = WindowCell(
            kind=aggregation.kind,
            at_us=cell.row_us,
            delay_us=self._windows.delay // _MICROSECOND,
            width_us=width // _MICROSECOND,
            served=cell.served,
        )
        if self._stream is not None and self._is_merged(known.time_us, cell.row_us):
            resolution_us = self._stream.resolution // _MICROSECOND
            if is_within_resolution(window, events, resolution_us):
                return "resolution"
        return "late" if is_without_late_events(window, events) else "unexplained"

    def _is_merged(self, time_us: Any, at_us: int) -> bool:
        """Whether a stream keeps this entity's events merged: up to so many it is exact."""
        horizon = max(self._windows.widths.values()) + self._windows.delay
        edges = [at_us - horizon // _MICROSECOND, at_us]
        low, high = np.searchsorted(time_us, edges, side="right").tolist()
        return bool(high - low > EXACT_ENTRIES)

    def _version_at(self, moment: datetime) -> int:
        """The source table's newest version at a moment; -1: there was none yet."""
        return bisect_right(range(self._num_versions), moment, key=self._committed_at) - 1

    def _committed_at(self, version: int) -> datetime:
        if version not in self._commit_times:
            found = tables.latest(self._settings, self._table.source, version)
            self._commit_times[version] = found.committed_at
        return self._commit_times[version]

    def _read(
        self, cells: Sequence[DifferingCell], version: int
    ) -> "dict[tuple[Any, ...], _Events]":
        """The events of these cells' entities in time order, marked by whether a version has them.

        Version -1 stands before the first. Without a key nobody can tell which rows are new: then
        all count as known.
        """
        entity = list(self._windows.entity)
        source, time = self._table.source, self._windows.event_time
        rows = tables.scan(self._settings, source)
        types = rows.collect_schema()
        wanted = pl.DataFrame(
            [cell.entity for cell in cells],
            schema={name: types[name] for name in entity},
            orient="row",
        ).unique()
        last_us = max(cell.row_us for cell in cells)
        columns = [*self._windows.source_columns(), *self._key]
        events = (
            rows.select(list(dict.fromkeys(columns)))
            .filter(pl.col(time).dt.epoch("us") <= last_us)
            .join(wanted.lazy(), on=entity, how="semi")
        )
        is_known = pl.lit(not self._key)
        if self._key and version >= 0:
            then = tables.scan(self._settings, source, version=version)
            known = then.select(*self._key).with_columns(pl.lit(True).alias(_KNOWN))
            events = events.join(known, on=list(self._key), how="left", nulls_equal=True)
            is_known = pl.col(_KNOWN).fill_null(False)
        frame = (
            events.with_columns(is_known.alias(_KNOWN), pl.col(time).dt.epoch("us").alias(_TIME))
            .sort(_TIME, maintain_order=True)
            .collect()
        )
        parts = frame.partition_by(entity, as_dict=True, maintain_order=True)
        return {who: _Events(part, self._windows) for who, part in parts.items()}


class _Events:
    """One entity's events as arrays, made once for all of its cells."""

    def __init__(self, frame: pl.DataFrame, windows: Windows) -> None:
        self.time_us = frame[_TIME].to_numpy()
        self.maybe_unseen = ~frame[_KNOWN].to_numpy()
        self.values = {
            a.column: frame[a.column].cast(pl.Float64).fill_null(np.nan).to_numpy()
            for a in windows.aggregations
            if a.column is not None
        }


def _at_most(versions: Sequence[int], number: int) -> list[int]:
    """Round versions down to a few of them: more events may then have come late, never fewer."""
    distinct = sorted(set(versions))
    step = -(-len(distinct) // number)
    kept = distinct[:: max(step, 1)]
    return [kept[bisect_right(kept, version) - 1] for version in versions]
