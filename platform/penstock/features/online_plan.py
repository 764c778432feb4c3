"""What a feature service needs from a request and from the store, read from the declarations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from penstock.errors import DeclarationError
from penstock.features.declarations import FeatureObjects, function_of
from penstock.records import Record

if TYPE_CHECKING:
    from feast import FeatureView, OnDemandFeatureView
    from feast.feature_view_projection import FeatureViewProjection
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


class FieldSpec(Record):
    """One field that every row of a request must have."""

    name: str
    dtype: FieldType


@dataclass(frozen=True)
class StoredPart:
    """What the service takes from one stored view."""

    view: FeatureView
    key_fields: dict[str, str]
    """Join key in the store -> field of the request."""
    features: list[str]
    columns: list[int]
    """Where each feature stands in the row; -1: needed by a function only."""
    ttl_us: int | None


@dataclass(frozen=True)
class ComputedPart:
    """What the service takes from one on-demand view."""

    function: Callable[[dict[str, Any]], Mapping[str, Any]]
    features: list[str]
    columns: list[int]
    stored_inputs: list[str]


def request_fields(objects: FeatureObjects, service: str) -> tuple[FieldSpec, ...]:
    """Name the fields of a service's requests."""
    return tuple(ReadPlan(objects, service).fields.values())


def origins(objects: FeatureObjects, service: str) -> dict[str, tuple[str, ...]]:
    """Name the stored views that each feature of a service stands on; none: on the request."""
    plan = ReadPlan(objects, service)
    view_of = {name: part.view.name for part in plan.stored for name in part.features}
    found: dict[str, tuple[str, ...]] = {name: (view,) for name, view in view_of.items()}
    for computed in plan.computed:
        views = tuple(dict.fromkeys(view_of[name] for name in computed.stored_inputs))
        found |= dict.fromkeys(computed.features, views)
    return {name: found[name] for name in plan.feature_names}


class ReadPlan:
    """What a service needs from the request and from the store, and where each value goes."""

    def __init__(self, objects: FeatureObjects, service_name: str) -> None:
        self.fields: dict[str, FieldSpec] = {}
        self.stored: list[StoredPart] = []
        self.computed: list[ComputedPart] = []
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
            StoredPart(
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
            ComputedPart(
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
