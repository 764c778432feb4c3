"""The row that a model is served with: features by entity from the online store, and by function.

Everything comes from the declarations of the use case; neither Feast's registry nor anything that
it pickled is read. One batched read a feature view, whatever the number of rows.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal, Self, cast

import numpy as np
from numpy.typing import NDArray

from penstock.errors import DeclarationError, StoreEmptyError, UserError
from penstock.features import entity_keys
from penstock.features.declarations import FeatureObjects, function_of, load_feature_objects
from penstock.features.online_rows import NO_EVENT_US, ReadRows, RowStore
from penstock.records import Record
from penstock.settings import Settings

if TYPE_CHECKING:
    from feast import FeatureView, OnDemandFeatureView
    from feast.feature_view_projection import FeatureViewProjection
    from feast.repo_config import RepoConfig
    from feast.types import FeastType


FieldType = Literal["int64", "float64", "bool", "string", "timestamp"]
_FIELD_TYPES: dict[str, FieldType] = {
    "INT32": "int64",
    "INT64": "int64",
    "FLOAT": "float64",
    "DOUBLE": "float64",
    "BOOL": "bool",
    "STRING": "string",
    "UNIX_TIMESTAMP": "timestamp",
}
_NUMBERS = frozenset({"INT32", "INT64", "FLOAT", "DOUBLE", "BOOL"})
_COLUMN_TYPES: dict[FieldType, Any] = {
    "int64": np.int64,
    "float64": np.float64,
    "bool": np.bool_,
    "string": np.object_,
    "timestamp": "datetime64[us]",
}


class FieldSpec(Record):
    """One field that every row of a request must have."""

    name: str
    dtype: FieldType


@dataclass(frozen=True)
class OnlineRows:
    """Feature rows in the order of the request.

    Attributes:
        values: float64 [num_rows, num_features], NaN where there is no value.
        missing: for each row, the names of its features that have no value.
        fields: the request's fields, each as one array.
        as_of_us: int64 [num_rows], the time that each row asks about.
        event_us: by stored view int64 [num_rows], when the row that was found happened;
            NO_EVENT_US: none was.
    """

    values: NDArray[np.float64]
    missing: list[tuple[str, ...]]
    fields: Mapping[str, NDArray[Any]]
    as_of_us: NDArray[np.int64]
    event_us: Mapping[str, NDArray[np.int64]]


@dataclass(frozen=True)
class _StoredPart:
    """What the service takes from one stored view."""

    view: FeatureView
    key_fields: dict[str, str]
    """Join key in the store -> field of the request."""
    features: list[str]
    columns: list[int]
    """Where each feature stands in the row; -1: needed by a function only."""
    ttl_us: int | None


@dataclass(frozen=True)
class _ComputedPart:
    """What the service takes from one on-demand view."""

    function: Callable[[dict[str, Any]], Mapping[str, Any]]
    features: list[str]
    columns: list[int]
    stored_inputs: list[str]


class OnlineReader:
    """Looks up and computes the features of one service, many rows at once.

    One batch at a time: a caller with several threads takes turns.
    """

    def __init__(
        self,
        config: RepoConfig,
        store: RowStore,
        objects: FeatureObjects,
        service: str,
        *,
        now_us: Callable[[], int] = lambda: time.time_ns() // 1_000,
    ) -> None:
        """Plan the reads; see `open` for the usual way in."""
        plan = _Plan(objects, service)
        self.feature_names: tuple[str, ...] = plan.feature_names
        self.request_fields: tuple[FieldSpec, ...] = tuple(plan.fields.values())
        self.view_names = tuple(dict.fromkeys(part.view.name for part in plan.stored))
        self._stored = plan.stored
        self._computed = plan.computed
        self._event_time = plan.event_time
        self._inputs = plan.inputs
        self._config = config
        self._store = store
        self._now_us = now_us

    @classmethod
    def open(cls, settings: Settings, use_case: str, service: str) -> Self:
        """Open the online store for a feature service as it is declared.

        Raises:
            NotFoundError: no such use case or service.
            DeclarationError: the service has a feature that is no number.
        """
        from feast.infra.online_stores.helpers import get_online_store_from_config

        from penstock.features.store import repo_config

        config = repo_config(settings)
        store = cast(RowStore, get_online_store_from_config(config.online_store))
        return cls(config, store, load_feature_objects(settings, use_case), service)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> OnlineRows:
        """Give the features of each row of a request.

        A feature is missing where the entity is unknown, has no value, or its row is older than
        the view's TTL at the row's event time (the offline rule; now, where requests carry no
        event time). The store knows the newest row only: a request about the past gets it too.

        Args:
            rows: the request's fields, each of the type in `request_fields`; a time is a datetime
                (naive: UTC).

        Raises:
            UserError: a row lacks a field, or a value does not fit its type.
            NotFoundError: the online store was never prepared for a view.
            StoreEmptyError: it has lost what was materialized, and would know nobody.
        """
        values = np.full((len(rows), len(self.feature_names)), np.nan)
        columns = {field.name: self._column(field, rows) for field in self.request_fields}
        as_of_us = self._as_of_us(columns, len(rows))
        stored: dict[str, NDArray[np.float64]] = {}
        event_us: dict[str, NDArray[np.int64]] = {}
        for part in self._stored:
            read = self._read_part(part, columns, as_of_us)
            block = read.values
            event_us.setdefault(part.view.name, read.event_us)
            for index, (feature, column) in enumerate(
                zip(part.features, part.columns, strict=True)
            ):
                stored[feature] = block[:, index]
                if column >= 0:
                    values[:, column] = block[:, index]
        for computed in self._computed:
            inputs = {name: columns[name] for name in self._inputs}
            inputs |= {name: stored[name] for name in computed.stored_inputs}
            results = computed.function(inputs)
            for feature, column in zip(computed.features, computed.columns, strict=True):
                values[:, column] = results[feature]
        return OnlineRows(
            values=values,
            missing=self._missing(values),
            fields=columns,
            as_of_us=as_of_us,
            event_us=event_us,
        )

    def close(self) -> None:
        """Let go of the online store's connections."""
        self._store.disconnect()

    def _read_part(
        self, part: _StoredPart, columns: Mapping[str, NDArray[Any]], as_of_us: NDArray[np.int64]
    ) -> ReadRows:
        keys = entity_keys.encode(
            {key: columns[field].tolist() for key, field in part.key_fields.items()}
        )
        read = self._store.read_rows(self._config, part.view, keys, part.features)
        # Asked only where an entity is unknown: a store that lost its rows knows nobody.
        unknown = (read.event_us == NO_EVENT_US).any()
        if unknown and not self._store.is_filled(self._config, part.view):
            raise StoreEmptyError(
                f"the online store has lost the rows of {part.view.name}, or never had them",
                next_step="run `penstock features materialize`",
            )
        if part.ttl_us is not None:
            # Unknown entities carry the smallest event time; their values are NaN already.
            read.values[read.event_us < as_of_us - part.ttl_us] = np.nan
        return read

    def _as_of_us(self, columns: Mapping[str, NDArray[Any]], num_rows: int) -> NDArray[np.int64]:
        if self._event_time is None:
            return np.full(num_rows, self._now_us(), dtype=np.int64)
        return columns[self._event_time].astype(np.int64)

    def _column(self, field: FieldSpec, rows: Sequence[Mapping[str, Any]]) -> NDArray[Any]:
        try:
            convert = _CONVERT[field.dtype]
            given = [convert(row[field.name]) for row in rows]
            column: NDArray[Any] = np.array(given, dtype=_COLUMN_TYPES[field.dtype])
            return column
        except KeyError:
            raise UserError(
                f"a row lacks the field {field.name!r}",
                allowed=", ".join(f"{f.name} ({f.dtype})" for f in self.request_fields),
            ) from None
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(
                f"a value of {field.name!r} does not fit: {error}", allowed=field.dtype
            ) from None

    def _missing(self, values: NDArray[np.float64]) -> list[tuple[str, ...]]:
        absent = np.isnan(values)
        if not absent.any():
            return [()] * len(values)
        return [
            tuple(name for name, gone in zip(self.feature_names, row, strict=True) if gone)
            for row in absent.tolist()
        ]


def request_fields(objects: FeatureObjects, service: str) -> tuple[FieldSpec, ...]:
    """Name the fields of a service's requests."""
    return tuple(_Plan(objects, service).fields.values())


def origins(objects: FeatureObjects, service: str) -> dict[str, tuple[str, ...]]:
    """Name the stored views that each feature of a service stands on; none: on the request."""
    plan = _Plan(objects, service)
    view_of = {name: part.view.name for part in plan.stored for name in part.features}
    found: dict[str, tuple[str, ...]] = {name: (view,) for name, view in view_of.items()}
    for computed in plan.computed:
        views = tuple(dict.fromkeys(view_of[name] for name in computed.stored_inputs))
        found |= dict.fromkeys(computed.features, views)
    return {name: found[name] for name in plan.feature_names}


class _Plan:
    """What a service needs from the request and from the store, and where each value goes."""

    def __init__(self, objects: FeatureObjects, service_name: str) -> None:
        self.fields: dict[str, FieldSpec] = {}
        self.stored: list[_StoredPart] = []
        self.computed: list[_ComputedPart] = []
        self.inputs: list[str] = []
        self.event_time: str | None = None
        projections = objects.service(service_name).feature_view_projections
        names = [feature.name for projection in projections for feature in projection.features]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise DeclarationError(
                f"the feature service {service_name!r} has {', '.join(twice)} more than once"
            )
        self.feature_names = tuple(names)
        for projection in projections:
            for feature in projection.features:
                if _type_name(feature.dtype) not in _NUMBERS:
                    raise DeclarationError(
                        f"the feature {feature.name!r} of the service {service_name!r} is "
                        f"{feature.dtype}",
                        allowed="whole numbers, floats and booleans",
                    )
        # Join keys come first in a request, as they do in a training set.
        for projection in projections:
            if projection.name in objects.views:
                features = [feature.name for feature in projection.features]
                columns = [self.feature_names.index(name) for name in features]
                view = objects.views[projection.name]
                self._add_stored(view, projection, features, columns)
        for projection in projections:
            if projection.name in objects.on_demand_views:
                self._add_computed(objects, objects.on_demand_views[projection.name], projection)

    def _add_stored(
        self,
        view: FeatureView,
        projection: FeatureViewProjection,
        features: list[str],
        columns: list[int],
    ) -> None:
        key_types = {column.name: column.dtype for column in view.entity_columns}
        key_fields = {key: projection.join_key_map.get(key, key) for key in view.join_keys}
        for key, field in key_fields.items():
            self._add_field(field, key_types[key])
        self.stored.append(
            _StoredPart(
                view=view,
                key_fields=key_fields,
                features=features,
                columns=columns,
                ttl_us=view.ttl // timedelta(microseconds=1) if view.ttl else None,
            )
        )

    def _add_computed(
        self, objects: FeatureObjects, view: OnDemandFeatureView, projection: FeatureViewProjection
    ) -> None:
        for source in view.source_request_sources.values():
            for field in source.schema:
                self._add_field(field.name, field.dtype)
                if field.name not in self.inputs:
                    self.inputs.append(field.name)
            if source.timestamp_field:
                if self.event_time not in (None, source.timestamp_field):
                    raise DeclarationError(
                        f"requests would have two event times: {self.event_time} and "
                        f"{source.timestamp_field}"
                    )
                self.event_time = source.timestamp_field
        stored_inputs = []
        for needed in view.source_feature_view_projections.values():
            inputs = [feature.name for feature in needed.features]
            stored_inputs += inputs
            # A read of its own: what a function needs need not be in the row.
            self._add_stored(objects.views[needed.name], needed, inputs, [-1] * len(inputs))
        features = [feature.name for feature in projection.features]
        self.computed.append(
            _ComputedPart(
                function=function_of(view),
                features=features,
                columns=[self.feature_names.index(name) for name in features],
                stored_inputs=stored_inputs,
            )
        )

    def _add_field(self, name: str, dtype: FeastType) -> None:
        if _type_name(dtype) not in _FIELD_TYPES:
            raise DeclarationError(
                f"the request field {name!r} is {dtype}",
                allowed=", ".join(sorted(set(_FIELD_TYPES.values()))),
            )
        field = FieldSpec(name=name, dtype=_FIELD_TYPES[_type_name(dtype)])
        if self.fields.setdefault(name, field) != field:
            raise DeclarationError(f"the request field {name!r} is declared with two types")


def _type_name(dtype: FeastType) -> str:
    name: str = dtype.to_value_type().name
    return name


def _number(value: Any) -> float:
    # numpy and float() would also take the text "7".
    if isinstance(value, int | float | np.number):
        return float(value)
    raise TypeError(f"{type(value).__name__} is no number")


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise TypeError(f"{type(value).__name__} is no text")


def _naive_utc(value: Any) -> Any:
    if isinstance(value, datetime) and value.tzinfo is not None:
        return value.astimezone(UTC).replace(tzinfo=None)
    if isinstance(value, datetime | np.datetime64):
        return value
    raise TypeError(f"{type(value).__name__} is no datetime")


_CONVERT: dict[FieldType, Callable[[Any], Any]] = {
    "int64": operator.index,
    "float64": _number,
    "bool": operator.truth,
    "string": _text,
    "timestamp": _naive_utc,
}
