"""One join for training and for scoring: a service's features as known at each row's own time."""

import copy
import hashlib
import json
from collections.abc import Mapping
from typing import Any, cast

import polars as pl
from feast import FeatureService, FeatureStore
from feast.feature_view_projection import FeatureViewProjection

from penstock.data import tables
from penstock.errors import DeclarationError, UserError, unknown_name
from penstock.features.build import SOURCE, SOURCE_VERSION
from penstock.features.declarations import FeatureObjects, FeatureTable, function_of
from penstock.features.delta_source import DeltaSource
from penstock.features.offline_store import view_side
from penstock.features.pinned_rows import PinnedRows
from penstock.features.point_in_time import JoinPlan, execute_in_one_task, plan
from penstock.features.store import essence, registered_view
from penstock.settings import Settings
from penstock.use_cases import split_name


class ServiceJoin:
    """What a service needs of a row, and the join that gives its features."""

    def __init__(
        self,
        objects: FeatureObjects,
        service: FeatureService,
        *,
        at: Mapping[str, int] | None = None,
    ) -> None:
        """Take the newest version of every table, or the versions that are named."""
        self._objects = objects
        self._service = service
        self._views = _stored_views(objects, service)
        self._at = at

    @property
    def feature_names(self) -> tuple[str, ...]:
        """The service's features in its order."""
        views = self._service.feature_view_projections
        return tuple(f.name for view in views for f in view.features)

    @property
    def join_keys(self) -> list[str]:
        """The columns that rows are joined by."""
        keys = [
            view.join_key_map.get(key, key)
            for name, view in self._views.items()
            for key in self._objects.views[name].join_keys
        ]
        return list(dict.fromkeys(keys))

    @property
    def request_columns(self) -> list[str]:
        """The columns that functions take from the row itself."""
        return [
            field.name
            for projection in self._service.feature_view_projections
            if projection.name in self._objects.on_demand_views
            for source in self._objects.on_demand_views[
                projection.name
            ].source_request_sources.values()
            for field in source.schema
        ]

    def source_versions(self, settings: Settings) -> dict[str, int]:
        """The version of each table behind the service's views: the newest, or the one named.

        Raises:
            DeclarationError: a view reads a source that has no versions.
            NotFoundError: a feature table was never built, or has no such version.
        """
        return {
            table: tables.latest(settings, table, self._version(table)).version
            for table in self._tables().values()
        }

    def _version(self, table: str) -> int | None:
        if self._at is None:
            return None
        if table not in self._at:
            raise unknown_name("table among the named versions", table, self._at)
        return self._at[table]

    def _tables(self) -> dict[str, str]:
        found = {}
        for name in self._views:
            table = getattr(self._objects.views[name].batch_source, "table", None)
            if table is None:
                raise DeclarationError(
                    f"the feature view {name!r} reads a source that has no versions",
                    allowed="a DeltaSource with table=…, so that it can be told what was read",
                )
            found[name] = table
        return found

    def check_built(self, settings: Settings, rows: PinnedRows) -> None:
        """See that the feature tables computed from the rows' table have seen all of these rows.

        Rows that came in after the last build would be joined to features without them, and
        nobody could tell from the result. That holds for scores as for labels: scores are kept,
        and one command mends it, so both are refused.

        Raises:
            UserError: rows were added to the table after a feature table was built from it.
        """
        for name in self._tables().values():
            made_from = tables.latest(settings, name, self._version(name)).metadata
            if made_from.get(SOURCE) != rows.name or int(made_from[SOURCE_VERSION]) >= rows.version:
                continue
            seen = tables.latest(settings, rows.name, int(made_from[SOURCE_VERSION]))
            # A version may add nothing: an ingest whose rows all went to quarantine.
            if seen.num_rows != rows.num_rows:
                raise UserError(
                    f"{name} was built from version {seen.version} of {rows.name}, with "
                    f"{seen.num_rows:,} rows; version {rows.version} has {rows.num_rows:,}",
                    next_step=f"run `penstock features build {split_name(name)[0]}`",
                )

    def definition(self, feature_tables: Mapping[str, FeatureTable]) -> str:
        """Give a digest that changes when the service, its views, functions or windows do.

        Args:
            feature_tables: the use case's, by name.
        """
        projections = self._service.feature_view_projections
        on_demand = self._objects.on_demand_views
        used = [
            self._service,
            *(self._objects.views[name] for name in sorted(self._views)),
            *(on_demand[p.name] for p in projections if p.name in on_demand),
        ]
        tables_behind = sorted(set(self._tables().values()) & feature_tables.keys())
        content = {
            "objects": [essence(each) for each in used],
            "feature_tables": [feature_tables[name].digest for name in tables_behind],
        }
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def plan(self, store: FeatureStore, labels: pl.Schema, event_time: str) -> JoinPlan:
        """Check the join of the service's stored views to rows of this schema.

        Args:
            store: Feast's store, whose registry must know the views as they are declared.
            labels: the columns of the rows: the join keys and the event time among them.
            event_time: the column by which the rows are as-of joined.

        Raises:
            UserError: a view was not applied as it is declared now.
        """
        sides = []
        pinned = self._tables() if self._at is not None else {}
        for name, projection in self._views.items():
            view = self._objects.views[name]
            registered_view(store, view)
            features = [feature.name for feature in projection.features]
            rows = None
            if name in pinned:
                source = cast(DeltaSource, view.batch_source)
                rows = source.scan(store.config, version=self._version(pinned[name]))
            side = view_side(view.with_projection(projection), features, store.config, rows=rows)
            sides.append(side)
        needed = dict.fromkeys([*self.join_keys, event_time])
        return plan(pl.Schema({n: labels[n] for n in needed}), sides, event_time=event_time)

    def features(
        self, store: FeatureStore, frame: pl.DataFrame, event_time: str
    ) -> dict[str, pl.Series]:
        """Give the service's features of each row, and its functions' inputs, by name.

        Raises:
            UserError: a view was not applied as it is declared now.
        """
        checked = self.plan(store, frame.schema, event_time)
        stored = execute_in_one_task(checked, frame.select(checked.labels.names()))
        return self.complete(frame, stored)

    def complete(self, frame: pl.DataFrame, stored: pl.DataFrame) -> dict[str, pl.Series]:
        """Add what functions compute to the features that were looked up for the same rows."""
        found = {f.name: stored[f.name] for p in self._views.values() for f in p.features}
        return found | self._computed_features(frame, found)

    def _computed_features(
        self, frame: pl.DataFrame, stored: Mapping[str, pl.Series]
    ) -> dict[str, pl.Series]:
        computed: dict[str, pl.Series] = {}
        for projection in self._service.feature_view_projections:
            view = self._objects.on_demand_views.get(projection.name)
            if view is None:
                continue
            inputs = {
                field.name: _array(frame[field.name])
                for source in view.source_request_sources.values()
                for field in source.schema
            }
            for source in view.source_feature_view_projections.values():
                inputs |= {
                    f.name: stored[f.name].cast(pl.Float64).to_numpy() for f in source.features
                }
            results = function_of(view)(inputs)
            computed |= {f.name: pl.Series(f.name, results[f.name]) for f in projection.features}
        return computed


def _stored_views(
    objects: FeatureObjects, service: FeatureService
) -> dict[str, FeatureViewProjection]:
    """What to take from each stored view: the service's features, and its functions' inputs."""
    wanted: dict[str, FeatureViewProjection] = {}
    for projection in service.feature_view_projections:
        sources = [projection]
        if projection.name in objects.on_demand_views:
            view = objects.on_demand_views[projection.name]
            sources = list(view.source_feature_view_projections.values())
        for source in sources:
            if source.name not in wanted:
                wanted[source.name] = copy.copy(source)
                wanted[source.name].features = list(source.features)
                continue
            known = {f.name for f in wanted[source.name].features}
            wanted[source.name].features += [f for f in source.features if f.name not in known]
    return wanted


def _array(column: pl.Series) -> Any:
    # The arrays that a request is turned into have the same types; see online.py.
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
    return column.to_numpy()
