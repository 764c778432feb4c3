"""Sums over runs of rows, exact enough to subtract: what windows are computed from."""

import threading
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from penstock.errors import DataError

Rows: TypeAlias = NDArray[np.int64]
_Long: TypeAlias = NDArray[np.longdouble]


class SortedColumn:
    """One source column in sorted order, with each prefix sum built when first asked for."""

    def __init__(self, values: pl.Series, order: Rows) -> None:
        self.name = values.name
        self.is_whole = not values.dtype.is_float()
        self.dtype = values.dtype
        if values.dtype.is_float():
            values = values.fill_nan(None)
        ordered = values.gather(order)
        self.valid: NDArray[np.bool_] | None = (
            ordered.is_not_null().to_numpy() if ordered.null_count() else None
        )
        self.ordered = ordered
        self._made: dict[str, Any] = {}
        self._lock = threading.Lock()

    def _filled(self) -> pl.Series:
        return self.ordered.fill_null(False if self.dtype == pl.Boolean else 0)

    def _numbers(self) -> NDArray[Any]:
        """The values with 0 in place of nulls."""
        filled = self._filled()
        if self.is_whole:
            return filled.cast(pl.Int64).to_numpy()
        numbers = filled.cast(pl.Float64).to_numpy()
        if not np.isfinite(numbers).all():
            raise DataError(
                f"the column {self.name!r} holds an infinite value",
                allowed="finite numbers and nulls",
                next_step="refuse such rows in the table's contract",
            )
        return numbers

    def _get(self, what: str) -> Any:
        with self._lock:
            if what not in self._made:
                self._made[what] = self._make(what)
            return self._made[what]

    def _make(self, what: str) -> Any:
        if what == "num_values":
            return None if self.valid is None else cumulative(self.valid.astype(np.int64))
        if what == "newest":
            values = self._filled().to_numpy() if self.is_whole else self._numbers()
            if self.valid is None:
                return values
            # The row of the newest value up to each row; before the first value it says nothing.
            rows = np.where(self.valid, np.arange(len(values)), 0)
            return values[np.maximum.accumulate(rows)]
        if what == "num_true":
            return cumulative((self._numbers() != 0).astype(np.int64))
        if what == "sum":
            return cumulative(self._numbers()) if self.is_whole else PrefixSums(self._numbers())
        # Deviations from the column's mean keep squares small; std does not depend on a shift.
        numbers = self._numbers().astype(np.longdouble)
        deviations = numbers - numbers.mean() if len(numbers) else numbers
        if self.valid is not None:
            deviations = np.where(self.valid, deviations, np.longdouble(0))
        squares, rest = _two_product(deviations, deviations)
        return PrefixSums(deviations), PrefixSums(squares), PrefixSums(rest)

    def num_values(self, start: Rows, end: Rows) -> Rows:
        """How many of the rows [start, end) have a value."""
        prefix = self._get("num_values")
        count: Rows = end - start if prefix is None else prefix[end] - prefix[start]
        return count

    def num_true(self, start: Rows, end: Rows) -> Rows:
        """How many of the rows [start, end) have a value other than zero."""
        prefix = self._get("num_true")
        count: Rows = prefix[end] - prefix[start]
        return count

    def newest(self, end: Rows) -> NDArray[Any]:
        """The last value before row `end`; without meaning where there is none."""
        values: NDArray[Any] = self._get("newest")[np.maximum(end - 1, 0)]
        return values

    def sum(self, start: Rows, end: Rows) -> NDArray[Any]:
        """The sums of rows [start, end), nulls left out; whole numbers stay whole."""
        prefix = self._get("sum")
        if isinstance(prefix, PrefixSums):
            return prefix.between(start, end)
        total: Rows = prefix[end] - prefix[start]
        return total

    def variance(self, start: Rows, end: Rows) -> NDArray[np.float64]:
        """The sample variances of rows [start, end); without meaning below two values.

        (n sum(x^2) - sum(x)^2) / (n (n - 1)), with both terms as unevaluated sums of two numbers,
        for they may agree in all but their last digits. A deviation below 2**-42 of the column's
        spread is lost.
        """
        first, second, rest = self._get("moments")
        count = np.maximum(self.num_values(start, end), 2).astype(np.longdouble)
        total, total_rest = _two_sum(*first.terms(start, end))
        square, square_rest = _two_product(total, total)
        squares, squares_rest = _two_sum(*second.terms(start, end))
        squares_rest = squares_rest + sum(rest.terms(start, end))
        scaled, scaled_rest = _two_product(count, squares)
        difference = (scaled - square) + (
            (scaled_rest + count * squares_rest) - (square_rest + 2 * total * total_rest)
        )
        variance: NDArray[np.float64] = np.maximum(difference / (count * (count - 1)), 0).astype(
            np.float64
        )
        return variance


def cumulative(values: NDArray[Any]) -> Rows:
    """Prefix sums with a leading 0, so that rows [a, b) sum to p[b] - p[a]."""
    out = np.zeros(len(values) + 1, np.int64)
    np.cumsum(values, out=out[1:])
    return out


class PrefixSums:
    """Prefix sums of real numbers whose differences carry no error of what lies outside them.

    Subtracting two floating-point prefix sums leaves the rounding of everything summed before.
    Here each value is split into two whole multiples of a quantum, and whole numbers add and
    subtract exactly, even where the running total wraps around at 64 bits, as long as the
    window's own sum fits: so many bits are kept for the sum of all rows. What is dropped is, a
    value, below 2**-83 of the column's largest magnitude up to 1 M rows, 2**-73 up to 32 M.
    """

    def __init__(self, values: NDArray[Any]) -> None:
        largest = float(np.abs(values).max()) if len(values) else 0.0
        # The floor keeps the quantum and its inverse inside the range of a double.
        exponent = max(int(np.frexp(largest)[1]), -900)
        bits = min(42, 62 - len(values).bit_length())
        self._coarse = np.ldexp(np.longdouble(1), exponent - bits)
        self._fine = np.ldexp(np.longdouble(1), exponent - 2 * bits)
        kind = values.dtype.type
        high = np.rint(values * kind(1 / self._coarse))
        low = np.rint((values - high * kind(self._coarse)) * kind(1 / self._fine))
        self._high = cumulative(high.astype(np.int64))
        self._low = cumulative(low.astype(np.int64)) if low.any() else None

    def between(self, start: Rows, end: Rows) -> NDArray[np.float64]:
        """The sums of rows [start, end), rounded to a double."""
        total: NDArray[np.float64] = (self._high[end] - self._high[start]) * np.float64(
            self._coarse
        )
        if self._low is not None:
            total += (self._low[end] - self._low[start]) * np.float64(self._fine)
        return total

    def terms(self, start: Rows, end: Rows) -> tuple[_Long, _Long]:
        """The sums of rows [start, end) as two numbers that no rounding has touched."""
        high: _Long = (self._high[end] - self._high[start]) * self._coarse
        if self._low is None:
            return high, np.zeros_like(high)
        return high, (self._low[end] - self._low[start]) * self._fine


def _two_sum(a: _Long, b: _Long) -> tuple[_Long, _Long]:
    """The rounded sum and what the rounding left out (Knuth)."""
    total = a + b
    part = total - a
    return total, (a - (total - part)) + (b - part)


def _two_product(a: _Long, b: _Long) -> tuple[_Long, _Long]:
    """The rounded product and what the rounding left out (Dekker, with Veltkamp's splitting)."""
    product = a * b
    a_high, a_low = _split(a)
    b_high, b_low = (a_high, a_low) if b is a else _split(b)
    rest = ((a_high * b_high - product) + a_high * b_low + a_low * b_high) + a_low * b_low
    return product, rest


def _split(a: _Long) -> tuple[_Long, _Long]:
    num_bits = np.finfo(np.longdouble).nmant + 1
    scaled = a * np.longdouble(2 ** ((num_bits + 1) // 2) + 1)
    high = scaled - (scaled - a)
    return high, a - high
