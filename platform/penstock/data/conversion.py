"""Brings the values of a source to a contract's types, and says which of them cannot be.

Three kinds of source meet here. Parquet has types of its own: they were compared with the
contract's before, and only times are converted. CSV has text only: an integer is digits with a
sign, a float is a decimal number, a boolean is true or false, a time is ISO 8601. JSON Lines and
SQL have a few types: each must be of the contract's kind, where an integer will do for a float,
whole seconds for a time will not, and a time may also come as ISO 8601 text.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import polars as pl

from penstock.data.contracts import EVENT_TIME

_TIME = (
    r"^(\d{4}-\d{2}-\d{2})(?:[T ](\d{2}:\d{2})(:\d{2}(?:\.\d{1,9})?)?\s?(Z|z|[+-]\d{2}:?\d{2})?)?$"
)
_INTEGER = r"^[+-]?\d+$"
_FLOAT = r"(?i)^[+-]?(?:(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?|nan|inf|infinity)$"
_US_PER_S = 1_000_000
_DAY_S = 86_400
_EPOCH_DAY = date(1970, 1, 1).toordinal()
_FIRST = datetime(1, 1, 1, tzinfo=UTC)
_LAST = datetime(9999, 12, 31, 23, 59, 59, 999_999, tzinfo=UTC)


@dataclass(frozen=True)
class Converted:
    """A column in the contract's type; null where the value could not be converted."""

    values: pl.Series
    failed: pl.Series
    """Boolean, one a row: there was a value and it is not of the type."""


def convert(given: pl.Series | Sequence[Any], dtype: pl.DataType, *, zone: str) -> Converted:
    """Convert one column of a block to the contract's type."""
    if not isinstance(given, pl.Series):
        return _from_objects(given, dtype, zone)
    if dtype == EVENT_TIME and isinstance(given.dtype, pl.Datetime):
        return _compare(given, _times(given, zone))
    if given.dtype == dtype == pl.Date:
        return _compare(given, within_years(given))
    if given.dtype == dtype:
        return Converted(given, pl.repeat(False, len(given), eager=True))
    if given.dtype in (pl.Categorical, pl.Enum):
        given = given.cast(pl.String)
    return _compare(given, _from_text(given, dtype, zone))


def fits(given: pl.DataType, dtype: pl.DataType) -> bool:
    """Whether a typed source's column is of the contract's type; times may be of any unit."""
    if dtype == EVENT_TIME:
        return isinstance(given, pl.Datetime)
    return given == dtype or (dtype == pl.String and given in (pl.Categorical, pl.Enum))


def _compare(given: pl.Series, values: pl.Series) -> Converted:
    return Converted(values, given.is_not_null() & values.is_null())


def _times(given: pl.Series, zone: str) -> pl.Series:
    """To microseconds in UTC; null where a local time did not happen or happened twice."""
    return _to_utc(within_years(given).dt.cast_time_unit("us"), zone)


def within_years(given: pl.Series) -> pl.Series:
    """The dates or times of the years 1 to 9999, null for others.

    Beyond them a change of unit could overflow without a sign, and Python has no such dates.
    """
    if given.dtype == pl.Date:
        low, high = _FIRST.toordinal() - _EPOCH_DAY, _LAST.toordinal() - _EPOCH_DAY
    else:
        unit = given.dtype.time_unit  # type: ignore[attr-defined]  # it is a Datetime
        per_s = {"ms": 1_000, "us": _US_PER_S, "ns": 1_000_000_000}[unit]
        # A day less at both ends: a zone may move the time over the edge.
        low = max(math.ceil(_FIRST.timestamp() + _DAY_S) * per_s, -(2**63) + 1)
        high = min(math.floor(_LAST.timestamp() - _DAY_S) * per_s, 2**63 - 1)
    is_within = given.to_physical().is_between(low, high)
    return pl.select(pl.when(is_within).then(given)).to_series()


def _to_utc(times: pl.Series, zone: str) -> pl.Series:
    assert isinstance(times.dtype, pl.Datetime)  # noqa: S101  # ours: only times come here
    if times.dtype.time_zone is None:
        times = times.dt.replace_time_zone(zone, ambiguous="null", non_existent="null")
    return times.dt.convert_time_zone("UTC")


def _from_text(given: pl.Series, dtype: pl.DataType, zone: str) -> pl.Series:
    if dtype == pl.String:
        return given
    if dtype == EVENT_TIME:
        return within_years(_times_from_text(given, zone))
    if dtype == pl.Date:
        return within_years(given.str.to_date("%Y-%m-%d", strict=False))
    if dtype == pl.Boolean:
        lower = given.str.to_lowercase()
        return lower.replace_strict({"true": True, "false": False}, default=None).cast(pl.Boolean)
    pattern = _FLOAT if dtype.is_float() else _INTEGER
    numbers = pl.select(pl.when(given.str.contains(pattern)).then(given)).to_series()
    return numbers.cast(dtype, strict=False)


def _times_from_text(given: pl.Series, zone: str) -> pl.Series:
    name = given.name or "time"
    parts = pl.DataFrame({name: given}).select(
        (
            pl.col(name).str.extract(_TIME, 1)
            + "T"
            + pl.col(name).str.extract(_TIME, 2).fill_null("00:00")
            + pl.col(name).str.extract(_TIME, 3).fill_null(":00")
        ).alias("local"),
        pl.col(name).str.extract(_TIME, 4).str.replace(":", "").alias("offset"),
    )
    local = parts["local"].str.to_datetime("%Y-%m-%dT%H:%M:%S%.f", time_unit="us", strict=False)
    offset = parts["offset"]
    if offset.null_count() == len(offset):
        return _to_utc(local, zone)
    digits = offset.str.slice(1)
    minutes = (
        digits.str.slice(0, 2).cast(pl.Int64, strict=False).fill_null(0) * 60
        + digits.str.slice(2, 2).cast(pl.Int64, strict=False).fill_null(0)
    ) * pl.select(pl.when(offset.str.starts_with("-")).then(-1).otherwise(1)).to_series()
    zoned = (local - (minutes * 60 * _US_PER_S).cast(pl.Duration("us"))).dt.replace_time_zone("UTC")
    naive = _to_utc(local, zone)
    return pl.select(pl.when(offset.is_null()).then(naive).otherwise(zoned)).to_series()


def _from_objects(given: Sequence[Any], dtype: pl.DataType, zone: str) -> Converted:
    present = pl.Series([v is not None for v in given], dtype=pl.Boolean)
    values: pl.Series
    if dtype == EVENT_TIME:
        texts = pl.Series([_time_text(v) for v in given], dtype=pl.String)
        values = _from_text(texts, dtype, zone)
    elif dtype == pl.Date:
        texts = pl.Series([str(v) if _is_date(v) else None for v in given], dtype=pl.String)
        values = _from_text(texts, dtype, zone)
    else:
        accept = _acceptor(dtype)
        # Python's integers are wider than any column: strict=False makes the too large ones null.
        wide = pl.Int128() if dtype.is_integer() else dtype
        values = pl.Series([accept(v) for v in given], dtype=wide, strict=False)
        values = values.cast(dtype, strict=False)
    return Converted(values, present & values.is_null())


def _time_text(value: Any) -> str | None:
    if isinstance(value, str):
        return value
    return value.isoformat() if isinstance(value, datetime) else None


def _is_date(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, date) and not isinstance(value, datetime))


def _acceptor(dtype: pl.DataType) -> Callable[[Any], Any]:
    """What takes a value of the contract's kind and gives None for any other."""
    if dtype.is_integer():
        return lambda v: v if type(v) is int and -(2**127) <= v < 2**127 else None
    if dtype.is_float():
        return _float
    if dtype == pl.Boolean:
        return lambda v: v if isinstance(v, bool) else None
    return lambda v: v if isinstance(v, str) else None


def _float(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf
