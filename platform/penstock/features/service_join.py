"""One join for training and for scoring: a service's features as known at each row's own time."""

import copy
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import polars as pl
from feast import FeatureService, FeatureStore
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import DeclarationError, TrainingDataError, UserError, unknown_name
from penstock.features.build import SOURCE, SOURCE_VERSION
from penstock.features.declarations import FeatureObjects, function_of
from penstock.features.store import registered_view
from penstock.settings import Settings
from penstock.use_cases import split_name

_EVENT_TIMESTAMP = "event_timestamp"


class PinnedRows:
    """A table with a contract, at one version, read by period."""

    def __init__(self, settings: Settings, name: str, version: int | None) -> None:
        contract = get_table(settings, name)
        self.name = name
        self.event_time = contract.event_time
        self.key = contract.key
        pinned = tables.latest(settings, name, version)
        self.version = pinned.version
        self.num_rows = pinned.num_rows
        self._rows = tables.scan(settings, name, version=self.version)

    def read(self, columns: Sequence[str], start: datetime, end: datetime) -> pl.DataFrame:
        """Read columns, key and event time of start <= time < end, in time order.

        Raises:
            NotFoundError: the table has no such column.
            TrainingDataError: there is no row in the period.
        """
        known = self._rows.collect_schema().names()
        for column in columns:
            if column not in known:
                raise unknown_name(f"column of {self.name}", column, known)
        time = pl.col(self.event_time)
        order = [self.event_time, *self.key]
        frame = (
            self._rows.filter((time >= _utc(start)) & (time < _utc(end)))
            .select(list(dict.fromkeys([*columns, *order])))
            .sort(order, maintain_order=True)
            .collect()
        )
        if not frame.height:
            raise TrainingDataError(
                f"{self.name} has no row from {_utc(start)} up to {_utc(end)}",
                next_step="ingest that period, or change the model's split",
            )
        return frame


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


class ServiceJoin:
    """What a service needs of a row, and the join that gives its features."""

    def __init__(self, objects: FeatureObjects, service: FeatureService) -> None:
        self._objects = objects
        self._service = service
        self._views = _stored_views(objects, service)

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
        """The newest version of each table behind the service's views.

        Raises:
            DeclarationError: a view reads a source that has no versions.
            NotFoundError: a feature table was never built.
        """
        return {name: tables.latest(settings, name).version for name in self._tables()}

    def _tables(self) -> list[str]:
        found = []
        for name in self._views:
            table = getattr(self._objects.views[name].batch_source, "table", None)
            if table is None:
                raise DeclarationError(
                    f"the feature view {name!r} reads a source that has no versions",
                    allowed="a DeltaSource with table=…, so that it can be told what was read",
                )
            found.append(table)
        return found

    def check_built(self, settings: Settings, rows: PinnedRows) -> None:
        """See that the feature tables computed from the rows' table have seen all of these rows.

        Rows that came in after the last build would be joined to features without them, and
        nobody could tell from the result. That holds for scores as for labels: scores are kept,
        and one command mends it, so both are refused.

        Raises:
            UserError: rows were added to the table after a feature table was built from it.
        """
        for name in self._tables():
            made_from = tables.latest(settings, name).metadata
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

    def features(
        self, store: FeatureStore, frame: pl.DataFrame, event_time: str
    ) -> dict[str, pl.Series]:
        """Give the service's features of each row, and its functions' inputs, by name.

        Args:
            store: Feast's store, whose registry must know the views as they are declared.
            frame: rows with the join keys, the request columns and the event time.
            event_time: the column by which the rows are as-of joined.

        Raises:
            UserError: a view was not applied as it is declared now.
        """
        stored = self._stored_features(store, frame, event_time)
        return stored | self._computed_features(frame, stored)

    def _stored_features(
        self, store: FeatureStore, frame: pl.DataFrame, event_time: str
    ) -> dict[str, pl.Series]:
        views = [self._objects.views[name] for name in self._views]
        if not views:
            return {}
        for view in views:
            registered_view(store, view)
        projections = self._views.values()
        labels = frame.select(*self.join_keys, pl.col(event_time).alias(_EVENT_TIMESTAMP))
        offline = get_offline_store_from_config(store.config.offline_store)
        job = offline.get_historical_features(
            config=store.config,
            feature_views=[v.with_projection(p) for v, p in zip(views, projections, strict=True)],
            feature_refs=[f"{_ref(p)}:{f.name}" for p in projections for f in p.features],
            # Feast's interface speaks of pandas and of its own registries; ours takes these too.
            entity_df=cast(Any, labels),
            registry=cast(Any, _NoFunctions()),
            project=store.project,
        )
        joined = pl.DataFrame(pl.from_arrow(job.to_arrow()))
        if joined.height != frame.height:
            raise AssertionError(f"{frame.height} label rows became {joined.height}")
        return {f.name: joined[f.name] for p in projections for f in p.features}

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


def _ref(projection: FeatureViewProjection) -> str:
    # Feast's own name_to_use() carries no types.
    return projection.name_alias or projection.name


class _NoFunctions:
    """A registry without on-demand views, for a join that asks for none.

    Feast would unpickle the functions of all that its registry has, asked for or not
    (CVE-2026-18948); and would call them on lists of Python objects.
    """

    def list_on_demand_feature_views(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        return []


def _array(column: pl.Series) -> Any:
    # The arrays that a request is turned into have the same types; see online.py.
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
    return column.to_numpy()
