"""The row that a model is served with: features by entity from the online store, and by function.

Everything comes from the declarations of the use case; neither Feast's registry nor anything that
it pickled is read. One batched read a feature view, whatever the number of rows.
"""

from __future__ import annotations

import operator
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Self, cast

import numpy as np
from numpy.typing import NDArray

from penstock.errors import StoreEmptyError, UserError
from penstock.features import entity_keys
from penstock.features.declarations import FeatureObjects, load_feature_objects
from penstock.features.online_plan import FieldSpec, FieldType, ReadPlan, StoredPart
from penstock.features.online_rows import NO_EVENT_US, ReadRows, RowStore
from penstock.features.row_cache import CacheCounts, RowCache, WatchedStore
from penstock.settings import Settings

if TYPE_CHECKING:
    from feast.repo_config import RepoConfig


_COLUMN_TYPES: dict[FieldType, Any] = {
    "int64": np.int64,
    "float64": np.float64,
    "bool": np.bool_,
    "string": np.object_,
    "timestamp": "datetime64[us]",
}


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
        given: by row that brought features itself: these, by name.
    """

    values: NDArray[np.float64]
    missing: list[tuple[str, ...]]
    fields: Mapping[str, NDArray[Any]]
    as_of_us: NDArray[np.int64]
    event_us: Mapping[str, NDArray[np.int64]]
    given: Mapping[int, Mapping[str, float]] = field(default_factory=dict)


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
        plan = ReadPlan(objects, service)
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
    def open(cls, settings: Settings, use_case: str, service: str, *, cache_s: float = 0.0) -> Self:
        """Open the online store for a feature service as it is declared.

        Args:
            settings: where the store is.
            use_case: which declares the service.
            service: its name.
            cache_s: rows may be kept in memory for so long, unless they are written before.

        Raises:
            NotFoundError: no such use case or service.
            DeclarationError: the service has a feature that is no number.
        """
        from feast.infra.online_stores.helpers import get_online_store_from_config

        from penstock.features.store import repo_config

        config = repo_config(settings)
        store = cast(RowStore, get_online_store_from_config(config.online_store))
        if cache_s > 0:
            store = cast(RowStore, RowCache(cast(WatchedStore, store), max_age_s=cache_s))
        return cls(config, store, load_feature_objects(settings, use_case), service)

    @property
    def cache_counts(self) -> CacheCounts | None:
        """What a cache of rows counted; None: there is none."""
        return self._store.counts if isinstance(self._store, RowCache) else None

    def read(self, rows: Sequence[Mapping[str, Any]]) -> OnlineRows:
        """Give the features of each row of a request.

        A feature is missing where the entity is unknown, has no value, or its row is older than
        the view's TTL at the row's event time (the offline rule; now, where requests carry no
        event time). The store knows the newest row only: a request about the past gets it too.
        What a row brings itself stands in place of what is stored or computed.

        Args:
            rows: the request's fields, each of the type in `request_fields`; a time is a datetime
                (naive: UTC). Beside them features by name; NaN: there is none.

        Raises:
            UserError: a row lacks a field, or a value does not fit its type.
            NotFoundError: the online store was never prepared for a view.
            StoreEmptyError: it has lost what was materialized, and would know nobody.
        """
        values = np.full((len(rows), len(self.feature_names)), np.nan)
        columns = {field.name: self._column(field, rows) for field in self.request_fields}
        as_of_us = self._as_of_us(columns, len(rows))
        given = self._given(rows)
        stored: dict[str, NDArray[np.float64]] = {}
        event_us: dict[str, NDArray[np.int64]] = {}
        for part in self._stored:
            if _brings_all(part.features, given, len(rows)):
                read = _nothing_read(len(rows), len(part.features))
            else:
                read = self._read_part(part, columns, as_of_us)
            block = read.values
            for index, feature in enumerate(part.features):
                _put(block[:, index], feature, given)
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
                _put(values[:, column], feature, given)
        return OnlineRows(
            values=values,
            missing=self._missing(values),
            fields=columns,
            as_of_us=as_of_us,
            event_us=event_us,
            given=given,
        )

    def close(self) -> None:
        """Let go of the online store's connections."""
        self._store.disconnect()

    def _given(self, rows: Sequence[Mapping[str, Any]]) -> dict[int, dict[str, float]]:
        num_fields = len(self.request_fields)
        if all(len(row) <= num_fields for row in rows):
            return {}
        fields = {field.name for field in self.request_fields}
        features = [name for name in self.feature_names if name not in fields]
        found = {
            place: {name: row[name] for name in features if name in row}
            for place, row in enumerate(rows)
            if len(row) > num_fields
        }
        return {place: given for place, given in found.items() if given}

    def _read_part(
        self, part: StoredPart, columns: Mapping[str, NDArray[Any]], as_of_us: NDArray[np.int64]
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


def _brings_all(
    features: Sequence[str], given: Mapping[int, Mapping[str, float]], num_rows: int
) -> bool:
    """Whether every row brings all of these features itself."""
    return len(given) == num_rows and all(
        feature in some for some in given.values() for feature in features
    )


def _nothing_read(num_rows: int, num_features: int) -> ReadRows:
    return ReadRows(
        event_us=np.full(num_rows, NO_EVENT_US), values=np.full((num_rows, num_features), np.nan)
    )


def _put(
    column: NDArray[np.float64], feature: str, given: Mapping[int, Mapping[str, float]]
) -> None:
    """Put what rows bring of a feature in the place of what was found."""
    for place, some in given.items():
        if feature in some:
            column[place] = some[feature]


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
