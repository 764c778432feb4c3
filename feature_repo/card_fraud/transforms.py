"""Features made of the payment alone: the same function for a training set and for one request."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MICROSECONDS_PER_HOUR = 3_600_000_000
_HOURS_PER_DAY = 24
# 1970-01-01 was a Thursday; counting days from the Monday before it makes Monday 0.
_DAYS_FROM_MONDAY_TO_EPOCH = 3
_FIRST_WEEKEND_DAY = 5
_LAST_NIGHT_HOUR = 6


def payment_features(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Give amount, weekend flag (weekday >= 5) and night flag (hour <= 6) of each payment.

    Args:
        inputs: `TX_DATETIME` and `TX_AMOUNT`, each an array (times as datetime64, UTC) or, as
            Feast passes them, a list (times as datetime).

    Returns:
        The three features, arrays for arrays and lists for lists.
    """
    times, amounts = inputs["TX_DATETIME"], inputs["TX_AMOUNT"]
    hours = _microseconds(times) // _MICROSECONDS_PER_HOUR
    weekday = (hours // _HOURS_PER_DAY + _DAYS_FROM_MONDAY_TO_EPOCH) % 7
    features: dict[str, NDArray[Any]] = {
        "TX_AMOUNT": np.asarray(amounts, dtype=np.float64),
        "TX_DURING_WEEKEND": (weekday >= _FIRST_WEEKEND_DAY).astype(np.int64),
        "TX_DURING_NIGHT": (hours % _HOURS_PER_DAY <= _LAST_NIGHT_HOUR).astype(np.int64),
    }
    if isinstance(times, np.ndarray):
        return dict(features)
    return {name: values.tolist() for name, values in features.items()}


def _microseconds(times: NDArray[Any] | Sequence[datetime]) -> NDArray[np.int64]:
    if not isinstance(times, np.ndarray):
        times = np.array([_naive_utc(time) for time in times], dtype="datetime64[us]")
    return times.astype("datetime64[us]").astype(np.int64)


def _naive_utc(time: datetime) -> datetime:
    return (time - time.utcoffset()).replace(tzinfo=None) if time.utcoffset() is not None else time
