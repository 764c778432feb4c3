"""What training would see for logged predictions: the very join that training sets come from."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import orjson
import polars as pl
from numpy.typing import NDArray

from penstock.data import tables
from penstock.errors import DeclarationError
from penstock.features.build import SOURCE, SOURCE_VERSION
from penstock.features.declarations import (
    FeatureTable,
    load_feature_objects,
    load_feature_tables,
)
from penstock.features.online_plan import FieldType, origins, request_fields
from penstock.features.online_rows import NO_EVENT_US
from penstock.features.point_in_time import ViewSide, execute_in_one_task
from penstock.features.service_join import ServiceJoin
from penstock.features.store import open_store
from penstock.features.stream_declarations import Stream, load_streams, stream_lock
from penstock.locks import is_held
from penstock.settings import Settings

AS_OF = "__as_of"
_ROW_TIME = "__row_time:"
_TYPES: Mapping[FieldType, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "bool": pl.Boolean(),
    "string": pl.String(),
    "timestamp": pl.Datetime("us", "UTC"),
}


@dataclass(frozen=True, kw_only=True)
class Recomputed:
    """What the tables give for some predictions.

    Attributes:
        values: float64 [n, num_features], NaN where nothing is valid.
        row_us: by view int64 [n], the event time of the row that was joined; NO_EVENT_US: none.
        requests: the requests' fields as columns.
    """

    values: NDArray[np.float64]
    row_us: Mapping[str, NDArray[np.int64]]
    requests: pl.DataFrame


@dataclass(frozen=True, kw_only=True)
class StoredFeature:
    """Where a feature that is stored comes from."""

    view: str
    column: str
    """The table's name for it."""
    keys: Mapping[str, str]
    """The table's entity column -> the request's field."""
    table: FeatureTable | None
    """None: the table is not computed by windows, or its rows are looked up by other keys."""


class Recomputation:
    """Computes the features of one service again, for predictions that were logged."""

    def __init__(self, settings: Settings, use_case: str, service: str) -> None:
        """Open the tables behind a service as it is declared now.

        Raises:
            NotFoundError: no such use case or service, or a feature table was never built.
            DeclarationError: a view reads a source that has no versions.
        """
        self._settings = settings
        objects = load_feature_objects(settings, use_case)
        self._join = ServiceJoin(objects, objects.service(service))
        self._store = open_store(settings)
        self._fields = request_fields(objects, service)
        self.service = service
        self.feature_names = self._join.feature_names
        fields = {field.name for field in self._fields}
        self.names_to_give = tuple(name for name in self.feature_names if name not in fields)
        """The features that a request may bring itself."""
        self.table_versions = self._join.source_versions(settings)
        self.ttl_us = {
            name: view.ttl // timedelta(microseconds=1) if view.ttl else None
            for name, view in objects.views.items()
        }
        self.views_of = origins(objects, service)
        self._tables = {
            name: table
            for name, table in load_feature_tables(settings, use_case).items()
            if name in self.table_versions
        }
        self._table_of = {
            name: getattr(view.batch_source, "table", None) for name, view in objects.views.items()
        }
        self.complete_until = _complete_until(
            settings, list(self._tables.values()), load_streams(settings, use_case)
        )
        """Of what was served from then on the tables may lack events; None: they have all."""

    def check_served(self, features: str, views: str) -> None:
        """See that the service still gives the features that were logged, from the same views.

        Raises:
            DeclarationError: it was changed since.
        """
        wanted = {view for used in self.views_of.values() for view in used}
        if json.loads(features) != list(self.feature_names) or not wanted <= {*json.loads(views)}:
            raise DeclarationError(
                f"predictions were served from {features} of {views}, and the feature service "
                f"{self.service} now gives {', '.join(self.feature_names)}",
                next_step="look at later predictions with --since; declare a new service for a new "
                "model, and leave the old one as it is",
            )

    def has_same_tables(self) -> bool:
        """Whether no table behind the service got a new version meanwhile."""
        return self._join.source_versions(self._settings) == self.table_versions

    def _stored_features(self, sides: Sequence[ViewSide]) -> dict[str, StoredFeature]:
        """Say of each feature that is stored itself which column of which table it is."""
        found: dict[str, StoredFeature] = {}
        for side in sides:
            keys = dict(zip(side.source_keys, side.join_keys, strict=True))
            table = self._tables.get(self._table_of[side.name] or "")
            if table is not None and set(table.windows.entity) != keys.keys():
                table = None
            for feature, column in side.features.items():
                if feature in self.feature_names:
                    found[feature] = StoredFeature(
                        view=side.name, column=column, keys=keys, table=table
                    )
        return found

    def read(self, predictions: pl.DataFrame) -> tuple[Recomputed, dict[str, StoredFeature]]:
        """Join the predictions' requests to the tables as of their times.

        Args:
            predictions: rows of the table of predictions, all of this service.
        """
        requests = self._requests(predictions["request"])
        frame = requests.with_columns(predictions["as_of"].alias(AS_OF))
        checked = self._join.plan(self._store, frame.schema, AS_OF)
        told = [
            dataclasses.replace(
                side, features={**side.features, f"{_ROW_TIME}{side.name}": side.event_time}
            )
            for side in checked.views
        ]
        plan = dataclasses.replace(checked, views=tuple(told))
        joined = execute_in_one_task(plan, frame.select(plan.labels.names()))
        found = self._join.complete(frame, joined)
        columns = [found[n].cast(pl.Float64).fill_null(np.nan) for n in self.feature_names]
        recomputed = Recomputed(
            values=np.column_stack([column.to_numpy() for column in columns]),
            row_us={view.name: _micros(joined[f"{_ROW_TIME}{view.name}"]) for view in told},
            requests=requests,
        )
        return recomputed, self._stored_features(checked.views)

    def _requests(self, texts: pl.Series) -> pl.DataFrame:
        rows = [orjson.loads(text) for text in texts]
        columns: dict[str, Any] = {}
        for field in self._fields:
            given = [row[field.name] for row in rows]
            if field.dtype == "timestamp":
                column = pl.Series(given, dtype=pl.String).str.to_datetime(
                    "%+", time_unit="us", time_zone="UTC"
                )
            else:
                column = pl.Series(given, dtype=_TYPES[field.dtype])
            columns[field.name] = column
        return pl.DataFrame(columns)


def _complete_until(
    settings: Settings, built: Sequence[FeatureTable], streams: Mapping[str, Stream]
) -> datetime | None:
    """Find until when served predictions can only stand on events that the feature tables have.

    Events that came after the version that a feature table was built from are not in it. A stream
    counts events online at once and has them in its table within its flush interval: twice that
    leaves time for the commit.
    """
    limits: list[datetime] = []
    for table in built:
        made_from = tables.latest(settings, table.name).metadata
        if made_from.get(SOURCE) != table.source:
            continue
        seen = tables.latest(settings, table.source, int(made_from[SOURCE_VERSION]))
        stream = streams.get(table.source)
        margin = 2 * stream.flush_interval if stream else timedelta(0)
        # A version may add nothing: an ingest whose rows all went to quarantine.
        if seen.num_rows != tables.latest(settings, table.source).num_rows:
            limits.append(seen.committed_at - margin)
        elif stream is not None and is_held(stream_lock(settings, table.source)):
            limits.append(datetime.now(UTC) - margin)
    return min(limits, default=None)


def _micros(times: pl.Series) -> NDArray[np.int64]:
    # In microseconds whatever the table's precision is; a null is no row.
    return times.dt.epoch("us").fill_null(NO_EVENT_US).to_numpy()
