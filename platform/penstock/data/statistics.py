"""What a table version's columns hold, from small summaries that are kept per commit and merge.

Count, nulls, NaNs, smallest and largest are exact. Quantiles come from an equi-depth summary of
each commit (`NUM_POINTS` points), so their rank is right within 1/512 of the rows. Distinct values
are exact up to `NUM_HASHES` and estimated beyond, with a standard error of about 2.2 % (the k
smallest hashes: Bar-Yossef et al., "Counting distinct elements in a data stream", 2002).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from penstock.data.hashes import hash_texts, mix
from penstock.records import Record

NUM_POINTS = 512
NUM_HASHES = 2048
_FIRST_HASHES = 1 << 16
_FIRST_VALUES = 1 << 16
QUANTILES = (0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Value = int | float | str | bool | None


class ColumnStatistics(Record):
    """One column of one table version; times are ISO texts, quantiles are keyed "0.5" and so on."""

    name: str
    dtype: str
    count: int
    nulls: int
    nans: int
    min: Value
    max: Value
    quantiles: dict[str, Value]
    distinct: int
    distinct_is_exact: bool


@dataclass
class Summary:
    """The mergeable summary of one column; feed it with `update`, join two with `merge`."""

    name: str
    dtype: str = ""
    count: int = 0
    nulls: int = 0
    nans: int = 0
    low: Any = None
    high: Any = None
    points: list[np.ndarray[Any, Any]] = field(default_factory=list)
    weights: list[np.ndarray[Any, Any]] = field(default_factory=list)
    hashes: np.ndarray[Any, Any] = field(default_factory=lambda: np.empty(0, dtype=np.uint64))
    hashes_are_all: bool = True

    def update(self, series: pl.Series) -> None:
        """Take in more values of the column."""
        self.dtype = str(series.dtype)
        self.count += len(series)
        self.nulls += series.null_count()
        if series.dtype.is_nested() or series.dtype in (pl.Binary, pl.Object):
            return
        values = series.drop_nulls()
        if values.dtype.is_float():
            num_before = len(values)
            values = values.filter(values.is_not_nan())
            self.nans += num_before - len(values)
        if values.is_empty():
            return
        self._widen(values.min(), values.max())
        self._add_hashes(_hash(values))
        if values.dtype != pl.String:
            # polars sorts on all cores; numpy on one.
            ordered = pl.Series(floats(values)).sort().to_numpy()
            num_points = min(len(ordered), NUM_POINTS)
            at = ((np.arange(num_points) + 0.5) * len(ordered) / num_points).astype(np.int64)
            self.points.append(ordered[at])
            self.weights.append(np.full(num_points, len(ordered) / num_points))

    def merge(self, other: "Summary") -> None:
        """Take in everything that another summary of the same column has seen."""
        self.dtype = self.dtype or other.dtype
        self.count += other.count
        self.nulls += other.nulls
        self.nans += other.nans
        if other.low is not None:
            self._widen(other.low, other.high)
        self._add_hashes(other.hashes)
        self.hashes_are_all &= other.hashes_are_all
        self.points += other.points
        self.weights += other.weights

    def _widen(self, low: Any, high: Any) -> None:
        self.low = low if self.low is None else min(self.low, low)
        self.high = high if self.high is None else max(self.high, high)

    def _add_hashes(self, hashes: np.ndarray[Any, Any]) -> None:
        merged = self.hashes
        # A first part sets the bound that keeps nearly all of the rest out of the sort.
        for part in (hashes[:_FIRST_HASHES], hashes[_FIRST_HASHES:]):
            kept = part
            if len(merged) >= NUM_HASHES:
                kept = part[part <= merged[NUM_HASHES - 1]]
                self.hashes_are_all &= len(kept) == len(part)
            merged = np.union1d(merged, _unique(kept))
        if len(merged) > NUM_HASHES:
            self.hashes_are_all = False
        self.hashes = merged[:NUM_HASHES]

    def ordered_points(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """The points in ascending order with the number of values that each stands for."""
        if not self.points:
            return np.empty(0), np.empty(0)
        points, weights = np.concatenate(self.points), np.concatenate(self.weights)
        order = np.argsort(points, kind="stable")
        return points[order], weights[order]

    def compact(self) -> None:
        """Reduce the points of many batches to `NUM_POINTS`, to be stored."""
        points, weights = self.ordered_points()
        if len(points) > NUM_POINTS:
            total = weights.sum()
            at = ranks(weights, (np.arange(NUM_POINTS) + 0.5) / NUM_POINTS)
            points, weights = points[at], np.full(NUM_POINTS, total / NUM_POINTS)
        self.points, self.weights = [points], [weights]

    def statistics(self) -> ColumnStatistics:
        """Say what the column holds."""
        points, weights = self.ordered_points()
        quantiles: dict[str, Value] = {}
        if len(points):
            at = ranks(weights, np.array(QUANTILES))
            quantiles = {
                str(q): self._from_number(float(points[i]))
                for q, i in zip(QUANTILES, at, strict=True)
            }
        exact = self.hashes_are_all
        distinct = len(self.hashes)
        if not exact:
            distinct = round((NUM_HASHES - 1) / (float(self.hashes[-1]) / 2.0**64))
        return ColumnStatistics(
            name=self.name,
            dtype=self.dtype,
            count=self.count,
            nulls=self.nulls,
            nans=self.nans,
            min=_plain(self.low),
            max=_plain(self.high),
            quantiles=quantiles,
            distinct=distinct,
            distinct_is_exact=exact,
        )

    def _from_number(self, number: float) -> Value:
        if isinstance(self.low, datetime):
            return (_EPOCH + timedelta(microseconds=number)).isoformat()
        if isinstance(self.low, date):
            return (_EPOCH.date() + timedelta(days=round(number))).isoformat()
        if isinstance(self.low, bool):
            return bool(number)
        return round(number) if isinstance(self.low, int) else number


def ranks(weights: np.ndarray[Any, Any], shares: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The index of the point at which each share of all the values is reached."""
    reached = np.cumsum(weights)
    at = np.searchsorted(reached, shares * reached[-1])
    return np.asarray(np.minimum(at, len(weights) - 1))


def _unique(hashes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Each hash once; by a hash table, since a column of few values has them very often."""
    return np.asarray(pl.Series(hashes, dtype=pl.UInt64).unique().to_numpy(), dtype=np.uint64)


def floats(values: pl.Series) -> np.ndarray[Any, Any]:
    """The values on the scale of a summary's points: times as microseconds, dates as days."""
    return pl.Series(_numbers(values)).cast(pl.Float64).to_numpy()


def _numbers(values: pl.Series) -> np.ndarray[Any, Any]:
    if isinstance(values.dtype, pl.Datetime):
        return values.dt.epoch("us").to_numpy()
    if values.dtype in (pl.Date, pl.Time, pl.Duration):
        return values.to_physical().to_numpy()
    return values.cast(pl.Int64).to_numpy() if values.dtype == pl.Boolean else values.to_numpy()


def is_mostly_distinct(values: pl.Series) -> bool:
    """Whether most of the first values are there once, as ids and measurements are."""
    first = values.head(_FIRST_VALUES)
    return 2 * first.n_unique() > len(first)


def _hash(values: pl.Series) -> np.ndarray[Any, Any]:
    """64-bit hashes that stay the same over processes and releases: they are stored."""
    if values.dtype == pl.String:
        # Where texts repeat, finding the distinct ones costs less than hashing all.
        return hash_texts(values if is_mostly_distinct(values) else values.unique())
    numbers = _numbers(values)
    if numbers.dtype.kind == "f":
        bits = (numbers.astype(np.float64) + 0.0).view(np.uint64)  # +0.0 makes -0.0 the same zero
    else:
        bits = numbers.astype(np.int64).view(np.uint64)
    return mix(bits)


def _plain(value: Any) -> Value:
    if isinstance(value, date):  # datetime is a date too
        return value.isoformat()
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value if isinstance(value, int | float | str | bool | None) else str(value)


def summarize(frames: Iterable[pl.DataFrame]) -> list[Summary]:
    """Summarize every column of frames that share one schema."""
    summaries: dict[str, Summary] = {}
    for frame in frames:
        update(summaries, frame)
    return list(summaries.values())


def update(summaries: dict[str, Summary], frame: pl.DataFrame) -> None:
    """Take a frame into the summaries of its columns, which are made when absent."""
    for series in frame:
        summaries.setdefault(series.name, Summary(series.name)).update(series)


def merge(parts: Sequence[Sequence[Summary]]) -> list[Summary]:
    """Join the summaries of a table's commits to those of the table."""
    whole: dict[str, Summary] = {}
    for part in parts:
        for summary in part:
            whole.setdefault(summary.name, Summary(summary.name)).merge(summary)
    return list(whole.values())


_STORED = pl.Schema(
    {
        "name": pl.String(),
        "dtype": pl.String(),
        "count": pl.Int64(),
        "nulls": pl.Int64(),
        "nans": pl.Int64(),
        "low": pl.String(),
        "high": pl.String(),
        "kind": pl.String(),
        "points": pl.List(pl.Float64),
        "weights": pl.List(pl.Float64),
        "hashes": pl.List(pl.UInt64),
        "hashes_are_all": pl.Boolean(),
    }
)


def store(summaries: Iterable[Summary], path: Path) -> None:
    """Write the summaries as one Parquet file, whole or not at all."""
    rows = []
    for summary in summaries:
        summary.compact()
        rows.append(
            {
                "name": summary.name,
                "dtype": summary.dtype,
                "count": summary.count,
                "nulls": summary.nulls,
                "nans": summary.nans,
                "low": _encode(summary.low),
                "high": _encode(summary.high),
                "kind": type(summary.low).__name__,
                "points": summary.points[0].tolist(),
                "weights": summary.weights[0].tolist(),
                "hashes": pl.Series(summary.hashes, dtype=pl.UInt64),
                "hashes_are_all": summary.hashes_are_all,
            }
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    pl.DataFrame(rows, schema=_STORED).write_parquet(partial)
    partial.replace(path)


def load(path: Path) -> list[Summary]:
    """Read what `store` wrote."""
    return [
        Summary(
            name=row["name"],
            dtype=row["dtype"],
            count=row["count"],
            nulls=row["nulls"],
            nans=row["nans"],
            low=_decode(row["low"], row["kind"]),
            high=_decode(row["high"], row["kind"]),
            points=[np.array(row["points"], dtype=np.float64)],
            weights=[np.array(row["weights"], dtype=np.float64)],
            hashes=np.array(row["hashes"], dtype=np.uint64),
            hashes_are_all=row["hashes_are_all"],
        )
        for row in pl.read_parquet(path).iter_rows(named=True)
    ]


def _encode(value: Any) -> str:
    # Infinity is no JSON number.
    plain = str(value) if isinstance(value, float) else _plain(value)
    return orjson.dumps(plain).decode()


def _decode(text: str, kind: str) -> Any:
    value = orjson.loads(text)
    match kind:
        case "datetime":
            return datetime.fromisoformat(value)
        case "date":
            return date.fromisoformat(value)
        case "float":
            return float(value)
        case _:
            return value
