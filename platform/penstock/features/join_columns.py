"""Makes two sides of a join comparable: times as whole ticks, keys of one type."""

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

import polars as pl

from penstock.errors import DataError

TimeUnit: TypeAlias = Literal["us", "ns"]
MICROSECOND = timedelta(microseconds=1)
_PER_US: dict[TimeUnit, int] = {"us": 1, "ns": 1000}
# Instants beyond what 64 bits of nanoseconds hold (years 1677 to 2262) are pulled to its ends:
# they keep their order against every instant inside.
_NS_LIMIT_US = 2**63 // 1000 - 1


def finest_unit(dtypes: Iterable[pl.DataType]) -> TimeUnit:
    """The unit in which times of all these types compare without rounding.

    Raises:
        DataError: one of them is no timestamp.
    """
    unit: TimeUnit = "us"
    for dtype in dtypes:
        if isinstance(dtype, pl.Datetime):
            unit = "ns" if dtype.time_unit == "ns" else unit
        elif not isinstance(dtype, pl.Date | pl.Null):
            raise DataError(
                f"a time column is {dtype}",
                allowed="a timestamp (without a zone it is UTC) or a date",
            )
    return unit


def ticks(column: str, dtype: pl.DataType, unit: TimeUnit) -> pl.Expr:
    """The column as whole ticks since 1970 UTC."""
    if not isinstance(dtype, pl.Datetime):
        naive = pl.col(column).cast(pl.Datetime("us"))
        return ticks_from_us(naive.to_physical(), unit)
    # The physical value of a zoned timestamp is UTC; of a naive one it is taken as UTC.
    if dtype.time_unit == "ns":
        return pl.col(column).to_physical()
    us = pl.col(column).to_physical() * (1000 if dtype.time_unit == "ms" else 1)
    return ticks_from_us(us, unit)


def ticks_from_us(us: pl.Expr, unit: TimeUnit) -> pl.Expr:
    """Microseconds in the wanted unit."""
    return us if unit == "us" else us.clip(-_NS_LIMIT_US, _NS_LIMIT_US) * 1000


def ticks_of(span: timedelta | None, unit: TimeUnit) -> int | None:
    """The span in ticks; None where it never ends, which zero means too (as in Feast)."""
    return span // MICROSECOND * _PER_US[unit] if span else None


def prune_by_time(
    frame: pl.LazyFrame,
    column: str,
    dtype: pl.DataType,
    moments: pl.Series,
    unit: TimeUnit,
    ttl: timedelta | None,
) -> pl.LazyFrame:
    """Leave out rows that no label can see, by a filter that a Parquet reader can skip files by.

    Only prunes: its bounds are a little wide, and the join decides by itself.
    """
    first, last = moments.min(), moments.max()
    if not (isinstance(dtype, pl.Datetime) and isinstance(first, int) and isinstance(last, int)):
        return frame
    margin = timedelta(milliseconds=1)
    try:
        high = _instant(last, unit) + margin
        frame = frame.filter(pl.col(column) <= pl.lit(high).cast(_same_unit(dtype)))
        if ttl:
            low = _instant(first, unit) - ttl - margin
            frame = frame.filter(pl.col(column) >= pl.lit(low).cast(_same_unit(dtype)))
    except OverflowError:
        # Beyond the years 1 to 9999 Python has no word for the bound; then nothing is pruned.
        return frame
    return frame


def _instant(value: int, unit: TimeUnit) -> datetime:
    return datetime(1970, 1, 1) + timedelta(microseconds=value // _PER_US[unit])


def _same_unit(dtype: pl.Datetime) -> pl.Datetime:
    return pl.Datetime(dtype.time_unit, dtype.time_zone)


def align_keys(
    ours: str, our_dtype: pl.DataType, theirs: str, their_dtype: pl.DataType, view: str
) -> tuple[pl.Expr, pl.Expr]:
    """The label's and the source's key as expressions of one type, in which equal means equal.

    A value that the common type cannot hold becomes null, and so matches nothing: it cannot have
    an equal on the other side.

    Raises:
        DataError: no value of one could ever equal one of the other.
    """
    left, right = pl.col(ours), pl.col(theirs)
    if our_dtype == their_dtype and not our_dtype.is_float():
        return left, right
    if our_dtype == pl.Null:
        return left.cast(their_dtype), right
    if their_dtype == pl.Null:
        return left, right.cast(our_dtype)
    if our_dtype.is_numeric() and their_dtype.is_numeric():
        if isinstance(our_dtype, pl.Decimal) and isinstance(their_dtype, pl.Decimal):
            wide = pl.Decimal(38, max(our_dtype.scale, their_dtype.scale))
            return left.cast(wide, strict=False), right.cast(wide, strict=False)
        if _has_fractions(our_dtype) and _has_fractions(their_dtype):
            return _float_key(left), _float_key(right)
        return _whole_key(left, our_dtype), _whole_key(right, their_dtype)
    texts = (pl.String, pl.Categorical, pl.Enum)
    if our_dtype in texts and their_dtype in texts:
        return left.cast(pl.String), right.cast(pl.String)
    raise DataError(
        f"the labels' key {ours!r} is {our_dtype}, but {theirs!r} of the view {view!r} is "
        f"{their_dtype}",
        allowed="keys of one kind: whole numbers, text or booleans on both sides",
        next_step=f"convert {ours!r} before asking for features",
    )


def _has_fractions(dtype: pl.DataType) -> bool:
    return dtype.is_float() or dtype.is_decimal()


def _whole_key(key: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if _has_fractions(dtype):
        # pandas turns whole numbers beside a missing one into floats.
        return pl.when(key == key.floor()).then(key).cast(pl.Int64, strict=False)
    return key.cast(pl.Int64, strict=False)


def _float_key(key: pl.Expr) -> pl.Expr:
    return key.cast(pl.Float64).fill_nan(None)
