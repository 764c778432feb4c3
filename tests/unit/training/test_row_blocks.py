"""Passes over rows in blocks: what they say is what numpy says of all rows at once."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.training.row_blocks import ROWS_PER_BLOCK, along, blocks, lanes, moments

SIZES = [1, 63, ROWS_PER_BLOCK, 3 * ROWS_PER_BLOCK + 17]


def some(num_rows: int, seed: int, share_missing: float, middle: float = 5.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    rows = rng.normal(middle, 3, size=(num_rows, 3))
    rows[rng.random(rows.shape) < share_missing] = np.nan
    return rows


class TestBlocks:
    @pytest.mark.parametrize("num_rows", [0, *SIZES])
    def test_every_row_is_in_one_block_and_blocks_come_in_order(self, num_rows):
        found = [range(num_rows)[block] for block in blocks(num_rows)]
        assert list(itertools.chain(*found)) == list(range(num_rows))


class TestLanes:
    @pytest.mark.parametrize("num_rows", [1, 64, 100, 640])
    def test_they_hold_the_same_values_and_what_is_along_them_meets_its_column(self, num_rows):
        rows = some(num_rows, 1, 0.1)
        laid = lanes(rows)
        of_each = np.array([1.0, 10.0, 100.0])
        again = (laid * along(laid, of_each)).reshape(rows.shape)
        np.testing.assert_array_equal(again, rows * of_each)


class TestMoments:
    @given(
        num_rows=st.sampled_from([2, 100, *SIZES]),
        seed=st.integers(0, 1000),
        share_missing=st.sampled_from([0.0, 0.3]),
        middle=st.sampled_from([0.0, 5.0, 1e7]),
    )
    def test_they_are_numpys(self, num_rows, seed, share_missing, middle):
        rows = some(num_rows, seed, share_missing, middle)
        rows[0] = middle
        found = moments(rows)
        np.testing.assert_array_equal(found.counts, (~np.isnan(rows)).sum(axis=0))
        np.testing.assert_allclose(found.means, np.nanmean(rows, axis=0), rtol=1e-12, atol=1e-12)
        expected = np.nanstd(rows, axis=0)
        np.testing.assert_allclose(found.deviations, expected, rtol=1e-9, atol=1e-12)

    @pytest.mark.parametrize("num_rows", SIZES)
    def test_a_constant_that_no_binary_fraction_is_deviates_by_exactly_nothing(self, num_rows):
        rows = np.full((num_rows, 2), 0.1)
        rows[1::2, 1] = np.nan
        found = moments(rows)
        assert found.means.tolist() == [0.1, 0.1]
        assert found.deviations.tolist() == [0.0, 0.0]

    def test_what_begins_late_is_counted_from_there(self):
        rows = np.full((2 * ROWS_PER_BLOCK, 1), np.nan)
        rows[-2:, 0] = 1.0, 3.0
        found = moments(rows)
        assert (found.counts[0], found.means[0], found.deviations[0]) == (2, 2.0, 1.0)

    def test_without_any_value_there_is_no_mean(self):
        found = moments(np.full((3, 1), np.nan))
        assert found.counts.tolist() == [0]
        assert np.isnan(found.means[0])

    @pytest.mark.parametrize("place", [0, 5])
    def test_an_infinite_value_shows(self, place):
        rows = some(10, 1, 0.0)
        rows[place, 1] = np.inf
        assert np.isfinite(moments(rows).deviations).tolist() == [True, False, True]
