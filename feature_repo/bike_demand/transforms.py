"""Features made of the request alone: the calendar, the weather, and which station it is."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

WEATHER = ("clouds", "humidity", "pressure", "temperature", "wind")
STATIONS = (
    "metro-canal-du-midi",
    "place-des-carmes",
    "place-esquirol",
    "place-jeanne-darc",
    "pomme",
)
_MICROSECONDS_PER_HOUR = 3_600_000_000
_HOURS_PER_DAY = 24
# 1970-01-01 was a Thursday; counting days from the Monday before it makes Monday 0.
_DAYS_FROM_MONDAY_TO_EPOCH = 3
_FIRST_WEEKEND_DAY = 5


def station_feature(station: str) -> str:
    """The name of the flag that says that a row is about the station."""
    return f"is_{station.replace('-', '_')}"


def request_features(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give hour of the day, weekday, weekend flag, weather, and a flag for each known station.

    Args:
        inputs: `moment`, `station` and the weather, each an array (times as datetime64, UTC) or,
            as Feast passes them, a list (times as datetime).

    Returns:
        The features, arrays for arrays and lists for lists.
    """
    moments = inputs["moment"]
    hours = _microseconds(moments) / _MICROSECONDS_PER_HOUR
    days = np.floor(hours / _HOURS_PER_DAY)
    weekday = ((days + _DAYS_FROM_MONDAY_TO_EPOCH) % 7).astype(np.int64)
    station = np.asarray(inputs["station"], dtype=np.object_)
    features: dict[str, NDArray[Any]] = {
        "hour": hours - days * _HOURS_PER_DAY,
        "weekday": weekday,
        "is_weekend": (weekday >= _FIRST_WEEKEND_DAY).astype(np.int64),
        **{f"{name}_now": np.asarray(inputs[name], dtype=np.float64) for name in WEATHER},
        **{station_feature(name): (station == name).astype(np.int64) for name in STATIONS},
    }
    if isinstance(moments, np.ndarray):
        return dict(features)
    return {name: values.tolist() for name, values in features.items()}


def _microseconds(times: NDArray[Any] | Sequence[datetime]) -> NDArray[np.int64]:
    if not isinstance(times, np.ndarray):
        times = np.array([_naive_utc(time) for time in times], dtype="datetime64[us]")
    return times.astype("datetime64[us]").astype(np.int64)


def _naive_utc(time: datetime) -> datetime:
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)
