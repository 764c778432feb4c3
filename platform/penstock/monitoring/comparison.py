"""Compares what was served with what the tables give, cell by cell, and counts the reasons."""

from collections import Counter
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from penstock.features.online_rows import EPOCH, NO_EVENT_US
from penstock.features.stream_declarations import load_streams
from penstock.monitoring.recomputation import Recomputation, StoredFeature
from penstock.monitoring.skew_events import DifferingCell, EventsBehind
from penstock.monitoring.skew_policy import (
    REASONS,
    SAME_ROW,
    Reason,
    RowsFound,
    equal,
    reasons_of_rows,
)
from penstock.monitoring.skew_report import Example, FeatureAudit
from penstock.serving.log_collection import SERVED_AT
from penstock.settings import Settings

_EXAMPLES_PER_REASON = 3


class Comparison:
    """Compares the predictions of one service, part by part."""

    def __init__(self, settings: Settings, use_case: str, recomputation: Recomputation) -> None:
        self._settings = settings
        self.recomputation = recomputation
        self._streams = load_streams(settings, use_case)
        self._events: dict[str, EventsBehind] = {}
        self._tallies = {
            name: _Tally(recomputation.service, name) for name in recomputation.feature_names
        }

    def add(self, predictions: pl.DataFrame) -> None:
        """Compare some predictions, all of the service and from the same views."""
        part = _Part(self.recomputation, predictions)
        reasons = part.reasons()
        self._ask_events(part, reasons)
        reasons[part.differs & (reasons == SAME_ROW)] = "unexplained"
        for number, (feature, tally) in enumerate(self._tallies.items()):
            tally.num_cells += predictions.height
            for reason in REASONS:
                rows = np.flatnonzero(part.differs[:, number] & (reasons[:, number] == reason))
                tally.count(reason, len(rows))
                for row in rows[: tally.num_wanted(reason)].tolist():
                    tally.examples.append(part.example(feature, number, row, reason))

    def results(self) -> list[FeatureAudit]:
        """Tell what was found, feature by feature."""
        return [tally.result() for tally in self._tallies.values()]

    def _ask_events(self, part: "_Part", reasons: NDArray[np.str_]) -> None:
        """Look at the events behind what differs though the row is the same on both sides."""
        unclear: dict[str, list[tuple[int, int, DifferingCell]]] = {}
        asked: dict[str, EventsBehind] = {}
        for number, feature in enumerate(self._tallies):
            source = part.stored.get(feature)
            events = None if source is None else self._events_behind(source)
            if source is None or events is None:
                continue
            same_row = part.differs[:, number] & (reasons[:, number] == SAME_ROW)
            cells = part.cells(source, number, np.flatnonzero(same_row))
            unclear.setdefault(events.name, []).extend((row, number, c) for row, c in cells)
            asked[events.name] = events
        for name, cells_of_it in unclear.items():
            found = asked[name].explain([cell for _, _, cell in cells_of_it])
            for (row, number, _), reason in zip(cells_of_it, found, strict=True):
                reasons[row, number] = reason

    def _events_behind(self, source: StoredFeature) -> EventsBehind | None:
        table = source.table
        if table is None:
            return None
        if table.name not in self._events:
            stream = self._streams.get(table.source)
            self._events[table.name] = EventsBehind(self._settings, table, stream)
        return self._events[table.name]


class _Tally:
    """Counts the cells of one feature that differ and keeps a few examples of each reason."""

    def __init__(self, service: str, feature: str) -> None:
        self._service = service
        self._feature = feature
        self._counts: Counter[Reason] = Counter()
        self.num_cells = 0
        self.examples: list[Example] = []

    def num_wanted(self, reason: Reason) -> int:
        return _EXAMPLES_PER_REASON - sum(e.reason == reason for e in self.examples)

    def count(self, reason: Reason, number: int) -> None:
        self._counts[reason] += number

    def result(self) -> FeatureAudit:
        return FeatureAudit(
            service=self._service,
            feature=self._feature,
            num_cells=self.num_cells,
            num_by_reason={r: self._counts[r] for r in REASONS if self._counts[r]},
            examples=tuple(sorted(self.examples, key=lambda e: REASONS.index(e.reason))),
        )


class _Part:
    """Some predictions, what they were served from, and what the tables give."""

    def __init__(self, recomputation: Recomputation, predictions: pl.DataFrame) -> None:
        self._predictions = predictions
        self._as_of_us = predictions["as_of"].dt.epoch("us").to_numpy()
        self._ttl_us = recomputation.ttl_us
        self._views_of = recomputation.views_of
        self._recomputed, self.stored = recomputation.read(predictions)
        num_features = len(recomputation.feature_names)
        served = predictions["features"].explode().cast(pl.Float64).fill_null(np.nan)
        self._served = served.to_numpy().reshape(-1, num_features)
        self._served_us = _event_times(predictions)
        self.differs = ~equal(self._served, self._recomputed.values)

    def reasons(self) -> NDArray[np.str_]:
        """What the rows that were used explain, by prediction and feature: its first such view."""
        by_view = {
            view: reasons_of_rows(
                RowsFound(
                    as_of_us=self._as_of_us,
                    served_us=self._served_us[view],
                    newest_us=self._recomputed.row_us[view],
                    ttl_us=self._ttl_us[view],
                )
            )
            for view in {view for views in self._views_of.values() for view in views}
        }
        reasons = np.full(self.differs.shape, SAME_ROW, dtype="U16")
        for number, views in enumerate(self._views_of.values()):
            for view in views[::-1]:
                found = by_view[view]
                reasons[:, number] = np.where(found == SAME_ROW, reasons[:, number], found)
        return reasons

    def cells(
        self, source: StoredFeature, number: int, rows: NDArray[np.int64]
    ) -> Iterator[tuple[int, DifferingCell]]:
        """The cells of these rows that were served from the very row that the tables give."""
        served_us, row_us = self._served_us[source.view], self._recomputed.row_us[source.view]
        table = source.table
        keys = [source.keys[name] for name in table.windows.entity] if table else []
        rows = rows[(served_us[rows] == row_us[rows]) & (row_us[rows] != NO_EVENT_US)]
        entities = self._recomputed.requests.select(keys)[rows].rows()
        served_at = self._predictions[SERVED_AT]
        for row, entity in zip(rows.tolist(), entities, strict=True):
            yield (
                row,
                DifferingCell(
                    entity=entity,
                    feature=source.column,
                    row_us=int(row_us[row]),
                    served=float(self._served[row, number]),
                    served_at=served_at[row],
                ),
            )

    def example(self, feature: str, number: int, row: int, reason: Reason) -> Example:
        served_at, as_of, name = self._predictions.select(SERVED_AT, "as_of", "prediction_id").row(
            row
        )
        return Example(
            prediction_id=name,
            served_at=served_at,
            as_of=as_of,
            served=_number(self._served[row, number]),
            recomputed=_number(self._recomputed.values[row, number]),
            reason=reason,
            why=self._why(feature, row, reason),
        )

    def _why(self, feature: str, row: int, reason: Reason) -> str:
        views = self._views_of[feature]
        if not views:
            return "made from the request alone"
        view = views[0]
        served = _row_of(self._served_us[view][row])
        now = _row_of(self._recomputed.row_us[view][row])
        if reason == "ahead":
            return f"{served} was online, which is of after the request's own time"
        if reason == "expired":
            return f"{served} was online, older than the TTL of {view} allows"
        if reason == "resolution":
            return f"{served}, its window edges moved back within the stream's resolution"
        if served != now:
            return f"{served} was online; the tables have {now}"
        if reason == "late":
            return f"{served} was online without events that came into the tables later"
        return f"{served} has another value in the tables"


def _event_times(predictions: pl.DataFrame) -> Mapping[str, NDArray[np.int64]]:
    """By view: the event time of the row that was used, NO_EVENT_US where there was none."""
    times = predictions["view_event_times"].list
    return {
        view: times.get(place).dt.epoch("us").fill_null(NO_EVENT_US).to_numpy()
        for place, view in enumerate(orjson.loads(predictions["views"][0]))
    }


def _number(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _row_of(time_us: int) -> str:
    if time_us == NO_EVENT_US:
        return "no row"
    moment: datetime = EPOCH + timedelta(microseconds=int(time_us))
    return f"the row of {moment:%Y-%m-%d %H:%M:%S.%f}".removesuffix(".000000")
