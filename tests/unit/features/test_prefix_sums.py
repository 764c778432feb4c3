import math
from fractions import Fraction

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.prefix_sums import PrefixSums, SortedColumn, cumulative


@settings(max_examples=200, deadline=None)
@given(st.lists(st.floats(-1e12, 1e12), min_size=1, max_size=40), st.data())
def test_the_sum_of_a_run_is_the_rounded_exact_sum(values, data):
    start = data.draw(st.integers(0, len(values)))
    end = data.draw(st.integers(start, len(values)))
    got = PrefixSums(np.array(values)).between(np.array([start]), np.array([end]))
    exact = float(sum(map(Fraction, values[start:end]), Fraction(0)))
    largest = max(map(abs, values))
    assert float(got[0]) == pytest.approx(exact, rel=1e-15, abs=max(largest * 2.0**-75, 1e-290))


@pytest.mark.parametrize("magnitude", [1e-310, 1e-200, 1.0, 1e200, 1e300])
def test_any_magnitude_of_a_double_can_be_summed(magnitude):
    got = PrefixSums(np.full(3, magnitude)).between(np.array([1]), np.array([3]))
    assert math.isclose(float(got[0]), 2 * magnitude, rel_tol=1e-12, abs_tol=1e-290)


def test_the_running_total_may_wrap_as_long_as_the_run_fits():
    total = cumulative(np.full(8, 2**61))
    assert total[6] - total[4] == 2**62


def test_nulls_are_left_out_of_counts_and_sums():
    column = SortedColumn(pl.Series("x", [1.0, None, float("nan"), 4.0]), np.arange(4))
    start, end = np.array([0, 1]), np.array([4, 3])
    assert column.num_values(start, end).tolist() == [2, 0]
    assert column.sum(start, end).tolist() == [5.0, 0.0]


def test_a_small_deviation_beside_a_giant_is_seen():
    values = pl.Series("x", [4_294_967_294, 0, 1, 0])
    column = SortedColumn(values, np.arange(4))
    got = column.variance(np.array([1, 1]), np.array([3, 4]))
    assert got.tolist() == pytest.approx([0.5, 1 / 3], rel=1e-12)
