from datetime import UTC, date, datetime

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.data import statistics
from penstock.data.statistics import Summary


def of(*parts: pl.Series) -> statistics.ColumnStatistics:
    """The statistics of a column whose parts were summarized one by one, as commits are."""
    summaries = [statistics.summarize([part.to_frame()]) for part in parts]
    return statistics.merge(summaries)[0].statistics()


class TestStatistics:
    @given(st.lists(st.one_of(st.none(), st.integers(-(2**63), 2**63 - 1)), max_size=60), st.data())
    def test_small_columns_are_described_exactly_however_they_were_split(self, values, data):
        cut = data.draw(st.integers(0, len(values)))
        parts = [pl.Series("x", v, dtype=pl.Int64) for v in (values[:cut], values[cut:])]
        got = of(*parts)
        present = [v for v in values if v is not None]
        assert (got.count, got.nulls) == (len(values), len(values) - len(present))
        assert (got.distinct, got.distinct_is_exact) == (len(set(present)), True)
        assert (got.min, got.max) == (min(present, default=None), max(present, default=None))

    def test_quantiles_are_right_within_a_five_hundredth_of_the_rows(self):
        rng = np.random.default_rng(3)
        values = rng.exponential(10, 100_000)
        got = of(*(pl.Series("x", part) for part in np.array_split(values, 7)))
        for share, value in got.quantiles.items():
            assert abs((values <= value).mean() - float(share)) < 1 / 500

    def test_many_distinct_values_are_estimated_within_a_tenth(self):
        values = np.arange(200_000)
        got = of(pl.Series("x", values[:150_000]), pl.Series("x", values[50_000:]))
        assert not got.distinct_is_exact
        assert abs(got.distinct / 200_000 - 1) < 0.1

    def test_nan_is_counted_and_left_out(self):
        got = of(pl.Series("x", [1.0, float("nan"), 3.0, None]))
        assert (got.nans, got.nulls, got.min, got.max) == (1, 1, 1.0, 3.0)

    def test_times_texts_and_booleans_are_described_in_their_own_kind(self):
        noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
        assert of(pl.Series("t", [noon], dtype=pl.Datetime("us", "UTC"))).quantiles["0.5"] == (
            "2024-05-01T12:00:00+00:00"
        )
        assert of(pl.Series("d", [date(2024, 5, 1)])).max == "2024-05-01"
        assert of(pl.Series("s", ["b", "a", "b"])).distinct == 2
        assert of(pl.Series("b", [True, False, True])).quantiles["0.95"] is True

    def test_minus_zero_and_zero_are_one_value(self):
        assert of(pl.Series("x", [0.0, -0.0])).distinct == 1

    def test_what_is_stored_comes_back(self, tmp_path):
        frame = pl.DataFrame(
            {"x": [1.5, None, float("inf")], "t": [datetime(2024, 5, 1, tzinfo=UTC)] * 3}
        )
        summaries = statistics.summarize([frame])
        expected = [s.statistics() for s in summaries]
        statistics.store(summaries, tmp_path / "part.parquet")
        again = statistics.load(tmp_path / "part.parquet")
        assert [s.statistics() for s in again] == expected

    def test_an_empty_column_has_no_smallest(self):
        assert Summary("x").statistics().min is None


@pytest.mark.parametrize("extra", [0, 1])
def test_the_flag_of_exactness_is_right_at_its_very_edge(extra: int):
    values = pl.Series("v", range(statistics.NUM_HASHES + extra))
    summary = statistics.Summary("v")
    for part in (values, values.reverse(), values[:7]):
        summary.update(part)
    assert summary.statistics().distinct_is_exact == (extra == 0)
    assert abs(summary.statistics().distinct - len(values)) <= 0.15 * len(values) * extra
