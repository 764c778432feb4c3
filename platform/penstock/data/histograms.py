"""How the values of a table version spread: counted in one pass, kept beside its statistics.

The statistics that each commit leaves say where the bins lie, so the rows are read once only, batch
by batch. A version never changes, so what was counted of it is kept and not counted again.
"""

import contextlib
import hashlib
import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
from pydantic import ValidationError

from penstock.data import statistics, tables
from penstock.data.statistics import Summary
from penstock.errors import BusyError
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

NUM_BINS = 40
NUM_COMMON_VALUES = 10
_MAX_TEXT = 60
_BATCH_ROWS = 1 << 18
# Inner ranges to look at where few far values would press all others into one bin, and by how many
# times the whole must be wider for that.
_INNER = (((0.01, 0.99), 2.0), ((0.05, 0.95), 20.0))
_FORMAT = 1
_Array = np.ndarray[Any, Any]


class Bins(Record):
    """What to count of one column."""

    name: str
    edges: tuple[float, ...]
    """Ascending, on the scale of `statistics.floats`; empty where values are told by name."""
    are_named: bool
    """Texts and truth values, few enough to count each of them."""


class ValueCount(Record):
    """One value and how often it occurs."""

    value: str
    count: int


class Spread(Record):
    """What was counted of one column."""

    name: str
    edges: tuple[float, ...]
    counts: tuple[int, ...]
    """One a bin, [edge, next edge); the last bin holds its upper edge too."""
    below: int
    above: int
    mean: float | None
    """Of the finite values, on the scale of the edges."""
    deviation: float | None
    common: tuple[ValueCount, ...]
    """The most frequent named values, the most frequent first."""
    num_named: int
    """The rows with a named value, frequent or not."""


def bins_for(summary: Summary) -> Bins:
    """Lay up to `NUM_BINS` equal bins where a column's values are.

    Whole numbers get bins of whole width. Where few values lie far from all others, the bins
    cover the middle 98 % or 90 % and the rest is counted as below or above.
    """
    is_boolean = summary.dtype == "Boolean"
    if is_boolean or summary.dtype == "String":
        few = is_boolean or summary.hashes_are_all
        return Bins(name=summary.name, edges=(), are_named=few)
    points, weights = summary.ordered_points()
    is_finite = np.isfinite(points)
    points, weights = points[is_finite], weights[is_finite]
    if not len(points):
        return Bins(name=summary.name, edges=(), are_named=False)
    extremes = statistics.floats(pl.Series([summary.low, summary.high]))
    low = float(extremes[0]) if math.isfinite(extremes[0]) else float(points[0])
    high = float(extremes[1]) if math.isfinite(extremes[1]) else float(points[-1])
    is_whole = summary.dtype.startswith(("Int", "UInt")) or summary.dtype == "Date"
    if is_whole and high - low < NUM_BINS:
        return Bins(name=summary.name, edges=tuple(_whole_edges(low, high)), are_named=False)
    for shares, far in _INNER:
        # Python's floats: a difference that is too large for one is infinite, not a warning.
        inner_low, inner_high = points[statistics.ranks(weights, np.array(shares))].tolist()
        if inner_high > inner_low and high - low > far * (inner_high - inner_low):
            low, high = inner_low, inner_high
    edges = _whole_edges(low, high) if is_whole else _edges(low, high)
    return Bins(name=summary.name, edges=tuple(edges), are_named=False)


def _whole_edges(low: float, high: float) -> list[float]:
    width = max(1, math.ceil((high - low + 1) / NUM_BINS))
    num_bins = math.ceil((high - low + 1) / width)
    return [low - 0.5 + width * number for number in range(num_bins + 1)]


def _edges(low: float, high: float) -> list[float]:
    if low == high:
        margin = max(0.5, abs(low) * 1e-6)
        low, high = low - margin, high + margin
    largest = np.finfo(np.float64).max
    low, high = max(low, -largest), min(high, largest)
    at = np.linspace(0.0, 1.0, NUM_BINS + 1)
    # Not low + (high - low) * at: the difference of two finite numbers may be infinite. The sum of
    # two shares of the largest one may be too, by rounding.
    with np.errstate(over="ignore"):
        between = np.clip(low * (1 - at) + high * at, low, high)
    edges: list[float] = np.unique(between).tolist()
    return edges


def spreads(
    settings: Settings,
    table: str,
    version: int,
    bins: Sequence[Bins],
    progress: Progress = silent,
) -> dict[str, Spread]:
    """Count the columns of a table version, or read what was counted of it before.

    Raises:
        NotFoundError: there is no such table or version.
    """
    kept = tables.folder(settings, table).statistics_path / f"spread-{version}-{_digest(bins)}.json"
    known = _load(kept)
    if known is None:
        known = _count(settings, table, version, bins, progress)
        # Somebody who may only read the table gets his answer all the same.
        with (
            contextlib.suppress(OSError, BusyError),
            exclusive(kept.parent / "spread.lock", what=f"what is kept of {table}", wait_s=10),
        ):
            write_whole(kept, orjson.dumps([spread.model_dump() for spread in known]))
    return {spread.name: spread for spread in known}


def _digest(bins: Sequence[Bins]) -> str:
    asked = orjson.dumps([_FORMAT, *(wanted.model_dump() for wanted in bins)])
    return hashlib.sha256(asked).hexdigest()[:16]


def _load(file: Path) -> list[Spread] | None:
    try:
        return [Spread.model_validate(parts) for parts in orjson.loads(file.read_bytes())]
    except (OSError, orjson.JSONDecodeError, ValidationError, TypeError):
        return None


def _count(
    settings: Settings, table: str, version: int, bins: Sequence[Bins], progress: Progress
) -> list[Spread]:
    counters = [_Counter(wanted) for wanted in bins]
    names = [counter.name for counter in counters]
    total = tables.latest(settings, table, version).num_rows
    step, done = f"count {table} version {version}", 0
    progress(step, done, total)
    rows = tables.scan(settings, table, version=version).select(names)
    for batch in rows.collect_batches(chunk_size=_BATCH_ROWS):
        for counter in counters:
            counter.update(batch[counter.name])
        done += batch.height
        progress(step, done, total)
    return [counter.spread() for counter in counters]


class _Counter:
    """Counts one column, batch by batch."""

    def __init__(self, bins: Bins) -> None:
        self.name = bins.name
        self._bins = bins
        self._edges = np.asarray(bins.edges, dtype=np.float64)
        self._counts = np.zeros(len(bins.edges) + 1, dtype=np.int64)
        self._named: Counter[str] = Counter()
        self._number = 0
        self._mean = 0.0
        self._squares = 0.0

    def update(self, series: pl.Series) -> None:
        """Take in more values."""
        values = series.drop_nulls()
        if self._bins.are_named:
            counted = values.cast(pl.String).value_counts(name="__count")
            self._named.update(dict(counted.iter_rows()))
        elif len(self._edges):
            numbers = statistics.floats(values)
            numbers = numbers[~np.isnan(numbers)]
            at = np.searchsorted(self._edges, numbers, side="right")
            at[numbers == self._edges[-1]] -= 1
            self._counts += np.bincount(at, minlength=len(self._counts))
            self._add_moments(numbers[np.isfinite(numbers)])

    def _add_moments(self, numbers: _Array) -> None:
        # Chan, Golub, LeVeque, "Updating formulae and a pairwise algorithm for computing sample
        # variances", 1979: sums of squares would cancel where the mean is large.
        if not len(numbers):
            return
        with np.errstate(over="ignore", invalid="ignore"):
            mean = float(numbers.mean())
            squares = float(((numbers - mean) ** 2).sum())
            gap, total = mean - self._mean, self._number + len(numbers)
            self._squares += squares + gap * gap * self._number * len(numbers) / total
            self._mean += gap * len(numbers) / total
            self._number = total

    def spread(self) -> Spread:
        """Give what was counted."""
        has_bins = len(self._edges) > 0
        deviation = math.sqrt(self._squares / self._number) if self._number else math.nan
        # By name too, so that equal counts come in one order.
        ordered = sorted(self._named.items(), key=lambda item: (-item[1], item[0]))
        return Spread(
            name=self.name,
            edges=self._bins.edges,
            counts=tuple(self._counts[1:-1].tolist()) if has_bins else (),
            below=int(self._counts[0]) if has_bins else 0,
            above=int(self._counts[-1]) if has_bins else 0,
            mean=self._mean if self._number and math.isfinite(self._mean) else None,
            deviation=deviation if math.isfinite(deviation) else None,
            common=tuple(
                ValueCount(value=_shortened(value), count=count)
                for value, count in ordered[:NUM_COMMON_VALUES]
            ),
            num_named=self._named.total(),
        )


def _shortened(text: str) -> str:
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
