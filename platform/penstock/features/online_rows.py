"""What Penstock asks of an online store beyond Feast's interface: whole columns in, arrays out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Protocol

import numpy as np
from feast import FeatureView
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import (
    Bool,
    Bytes,
    FeastType,
    Float32,
    Float64,
    Int32,
    Int64,
    String,
    UnixTimestamp,
)
from numpy.typing import NDArray

from penstock.errors import DeclarationError

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
VALUE_FIELDS: dict[FeastType, str] = {
    Int32: "int32_val",
    Int64: "int64_val",
    Float32: "float_val",
    Float64: "double_val",
    Bool: "bool_val",
    String: "string_val",
    Bytes: "bytes_val",
    UnixTimestamp: "unix_timestamp_val",
}
"""The types that can be stored, and the field of Feast's `Value` that carries each."""
NO_EVENT_US = np.iinfo(np.int64).min
"""Stands for the event time of an entity that the store does not know."""


@dataclass(frozen=True, kw_only=True)
class WrittenRows:
    """Rows of one feature view on their way into the online store.

    Attributes:
        keys: the entity keys, as `entity_keys.encode` gives them.
        event_us: event times in microseconds since 1970, UTC.
        created_us: created times, or None where the source has none.
        features: the values of each feature, None where there is none.
    """

    keys: Sequence[bytes]
    event_us: Sequence[int]
    created_us: Sequence[int] | None
    features: Mapping[str, Sequence[Any]]


@dataclass(frozen=True, kw_only=True)
class ReadRows:
    """Rows of one feature view out of the online store, in the order of the keys asked for.

    Attributes:
        event_us: int64 [n], NO_EVENT_US where the entity is unknown.
        values: float64 [n, num_features], NaN where there is no value.
    """

    event_us: NDArray[np.int64]
    values: NDArray[np.float64]


class RowStore(Protocol):
    """An online store that can be written and read a whole block at a time."""

    def write_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the block; a stored row that is newer stays as it is.

        Each row is written whole. A call that breaks off may leave only some of the rows; the same
        call again writes the rest.
        """

    def replace_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the block over whatever is stored: what is newer there was never to be."""

    def read_rows(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[bytes], features: Sequence[str]
    ) -> ReadRows:
        """Read numeric features of many entities at once; a key may come more than once."""

    def mark_filled(self, config: RepoConfig, view: FeatureView) -> None:
        """Note, with the rows, that a whole materialization of the view has been written."""

    def is_filled(self, config: RepoConfig, view: FeatureView) -> bool:
        """Whether that note is there: a store that lost its rows lost it with them."""

    def disconnect(self) -> None:
        """Let go of connections; the next call makes new ones."""


def value_fields(view: FeatureView) -> dict[str, str]:
    """Name the field of Feast's `Value` that carries each feature of the view.

    Raises:
        DeclarationError: a feature's type cannot be stored.
    """
    fields = {}
    for feature in view.features:
        if feature.dtype not in VALUE_FIELDS:
            raise DeclarationError(
                f"the feature {feature.name!r} of the view {view.name!r} is {feature.dtype}, "
                "which the online store does not hold",
                allowed=", ".join(sorted(str(dtype) for dtype in VALUE_FIELDS)),
                next_step="change its type, or declare the view with online=False",
            )
        fields[feature.name] = VALUE_FIELDS[feature.dtype]
    return fields


def rows_from_feast(
    data: Sequence[tuple[EntityKey, Mapping[str, Value], datetime, datetime | None]],
) -> list[WrittenRows]:
    """Turn what Feast hands to `online_write_batch` into blocks of rows with the same features."""
    blocks: dict[tuple[Any, ...], list[Any]] = {}
    for entity_key, values, event, created in data:
        key = serialize_entity_key(entity_key, entity_key_serialization_version=3)
        blocks.setdefault((created is not None, *values), []).append((key, values, event, created))
    return [
        WrittenRows(
            keys=[row[0] for row in block],
            event_us=[to_micros(row[2]) for row in block],
            created_us=[to_micros(row[3]) for row in block] if has_created else None,
            features={name: [_scalar(row[1][name]) for row in block] for name in names},
        )
        for (has_created, *names), block in blocks.items()
    ]


def to_micros(time: datetime) -> int:
    """Microseconds since 1970; a naive time is UTC."""
    aware = time if time.tzinfo else time.replace(tzinfo=UTC)
    return (aware - EPOCH) // timedelta(microseconds=1)


def _scalar(value: Value) -> Any:
    kind = value.WhichOneof("val")
    return None if kind in (None, "null_val") else getattr(value, kind)
