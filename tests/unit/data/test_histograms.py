import sys
from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_room import settings_in
from penstock.data import histograms, statistics, tables
from penstock.data.histograms import NUM_BINS, bins_for, spreads

NAME = "river.levels"


def bins_of(series: pl.Series) -> histograms.Bins:
    return bins_for(statistics.summarize([series.to_frame()])[0])


def counted(*parts: pl.Series) -> histograms.Spread:
    """The spread of a column that came in parts, on the bins of the whole."""
    bins = bins_of(pl.concat(parts))
    counter = histograms._Counter(bins)
    for part in parts:
        counter.update(part)
    return counter.spread()


class TestBins:
    def test_few_whole_numbers_get_a_bin_each(self):
        bins = bins_of(pl.Series("x", [3, 5, 4, 3]))
        assert bins.edges == (2.5, 3.5, 4.5, 5.5)

    def test_many_whole_numbers_get_bins_of_one_whole_width(self):
        edges = np.array(bins_of(pl.Series("x", range(1_000))).edges)
        assert len(edges) <= NUM_BINS + 1
        assert set(np.diff(edges)) == {25.0}
        assert edges[0] == -0.5

    def test_a_few_far_values_do_not_press_the_others_into_one_bin(self):
        values = [*np.linspace(0, 1, 1_000), 1e6]
        got = counted(pl.Series("x", values))
        assert got.edges[-1] < 2
        assert got.above >= 1
        assert max(got.counts) < 100

    def test_times_and_dates_lie_on_the_scale_of_their_summary(self):
        noon = datetime(2024, 5, 1, 12, tzinfo=UTC)
        times = pl.Series("t", [noon, noon + timedelta(hours=1)], dtype=pl.Datetime("us", "UTC"))
        assert bins_of(times).edges[0] == noon.timestamp() * 1e6
        assert bins_of(pl.Series("d", [date(1970, 1, 2)])).edges == (0.5, 1.5)

    @pytest.mark.parametrize(
        "series",
        [
            pl.Series("x", [None, None], dtype=pl.Float64),
            pl.Series("x", [float("nan")]),
            pl.Series("x", [float("inf")]),
            pl.Series("x", [[1], [2]]),
            pl.Series("x", [], dtype=pl.Int64),
        ],
    )
    def test_where_no_value_is_finite_there_are_none(self, series):
        assert bins_of(series).edges == ()

    def test_texts_are_named_while_they_are_few(self):
        assert bins_of(pl.Series("x", ["a", "b"])).are_named
        assert not bins_of(pl.Series("x", [str(n) for n in range(3_000)])).are_named


class TestCounts:
    @given(
        st.lists(st.one_of(st.none(), st.floats(allow_infinity=True, allow_nan=True)), max_size=50),
        st.data(),
    )
    def test_every_number_is_counted_once_however_the_rows_were_cut(self, values, data):
        cut = data.draw(st.integers(0, len(values)))
        column = pl.Series("x", values, dtype=pl.Float64)
        whole, parts = counted(column), counted(column[:cut], column[cut:])
        assert (whole.counts, whole.below, whole.above) == (parts.counts, parts.below, parts.above)
        numbers = [v for v in values if v is not None and v == v]
        total = sum(whole.counts) + whole.below + whole.above
        assert total == (len(numbers) if whole.edges else 0)

    @pytest.mark.parametrize("share", [1.0, 0.5, -1.0])
    def test_the_largest_numbers_have_their_bins(self, share):
        largest = sys.float_info.max
        counts = counted(pl.Series("x", [largest, share * largest])).counts
        assert sum(counts) == 2

    def test_counts_are_those_of_numpy(self):
        values = np.random.default_rng(0).normal(size=10_000)
        got = counted(pl.Series("x", values))
        inside = values[(values >= got.edges[0]) & (values <= got.edges[-1])]
        assert list(got.counts) == np.histogram(inside, bins=got.edges)[0].tolist()
        assert got.below == (values < got.edges[0]).sum()

    def test_mean_and_deviation_survive_a_large_offset_and_many_batches(self):
        values = np.random.default_rng(1).normal(1e9, 2.0, 5_000)
        got = counted(*(pl.Series("x", part) for part in np.array_split(values, 9)))
        assert got.mean == pytest.approx(values.mean(), rel=1e-12)
        assert got.deviation == pytest.approx(values.std(), rel=1e-6)

    def test_the_most_frequent_texts_come_first_and_long_ones_are_cut(self):
        got = counted(pl.Series("x", ["b", "a", "b", None, "x" * 500]))
        assert [(v.value[:1], v.count) for v in got.common] == [("b", 2), ("a", 1), ("x", 1)]
        assert len(got.common[-1].value) == 60
        assert got.num_named == 4


class TestKept:
    @pytest.fixture
    def settings(self, tmp_path):
        settings = settings_in(tmp_path)
        tables.commit(settings, NAME, pl.DataFrame({"x": [1, 2, 2]}), mode="append")
        tables.commit(settings, NAME, pl.DataFrame({"x": [9]}), mode="append")
        return settings

    def count(self, settings, version, **more):
        found = tables.column_summaries(settings, NAME, version=version)
        bins = [bins_for(summary) for summary in found]
        return spreads(settings, NAME, version, bins, **more)["x"]

    def test_a_version_is_counted_once_and_its_rows_are_not_read_again(self, settings):
        first = self.count(settings, 0)
        assert first.counts == (1, 2)
        for file in tables.folder(settings, NAME).path.glob("*.parquet"):
            file.unlink()
        assert self.count(settings, 0) == first

    def test_each_version_has_its_own(self, settings):
        assert sum(self.count(settings, 0).counts) == 3
        assert sum(self.count(settings, 1).counts) == 4

    def test_a_kept_file_that_is_damaged_is_counted_anew(self, settings):
        first = self.count(settings, 0)
        [kept] = tables.folder(settings, NAME).statistics_path.glob("spread-0-*.json")
        kept.write_bytes(kept.read_bytes()[:20])
        assert self.count(settings, 0) == first

    def test_progress_ends_at_the_number_of_rows(self, settings):
        heard = []
        self.count(settings, 1, progress=lambda step, done, total, unit="rows": heard.append(done))
        assert heard == [0, 4]
