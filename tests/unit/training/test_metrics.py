"""Metrics against what they are by definition, and against the published numbers."""

from datetime import date

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import TrainingDataError
from penstock.training.declarations import (
    R2,
    CalibrationError,
    MeanAbsoluteError,
    RocAuc,
    RootMeanSquaredError,
)
from penstock.training.metrics import (
    calibration_bins,
    curves,
    evaluate,
    expected_calibration_error,
    top_groups_precision,
)
from penstock.training.validation import Examples

ROWS = st.lists(
    st.tuples(st.integers(1, 4), st.integers(0, 5), st.integers(0, 1), st.integers(0, 9)),
    min_size=1,
    max_size=60,
)


def by_hand(rows, k, drop_found):
    """Card precision@k, one row at a time."""
    found, shares = set(), []
    for day in sorted({row[0] for row in rows}):
        best = {}
        for _, group, label, score in (row for row in rows if row[0] == day):
            before = best.get(group, (0, -1))
            best[group] = (max(label, before[0]), max(score, before[1]))
        ranked = sorted(
            (group for group in best if group not in found), key=lambda g: (-best[g][1], g)
        )
        hits = [group for group in ranked[:k] if best[group][0]]
        shares.append(len(hits) / k)
        if drop_found:
            found |= set(hits)
    return sum(shares) / len(shares)


def measured(rows, k, drop_found=True):
    days, groups, labels, scores = zip(*rows, strict=True)
    return top_groups_precision(
        days=pl.Series([date(2024, 1, day) for day in days]),
        groups=pl.Series(groups),
        labels=np.array(labels, dtype=np.int8),
        scores=np.array(scores, dtype=np.float64),
        k=k,
        drop_found=drop_found,
    )


class TestTopGroupsPrecision:
    @given(rows=ROWS, k=st.integers(1, 4), drop_found=st.booleans())
    def test_it_is_what_the_definition_gives_row_by_row(self, rows, k, drop_found):
        assert measured(rows, k, drop_found) == pytest.approx(by_hand(rows, k, drop_found))

    def test_a_group_that_was_found_takes_no_place_on_a_later_day(self):
        rows = [(1, 7, 1, 9), (2, 7, 1, 9), (2, 8, 1, 1)]
        assert measured(rows, k=1) == 1.0
        assert measured(rows[:2], k=1) == 0.5
        assert measured(rows[:2], k=1, drop_found=False) == 1.0

    def test_a_group_is_positive_by_any_of_its_rows_not_by_its_best_scored_one(self):
        assert measured([(1, 7, 0, 9), (1, 7, 1, 1), (1, 8, 0, 5)], k=1) == 1.0

    def test_a_day_with_fewer_groups_than_k_is_still_divided_by_k(self):
        assert measured([(1, 7, 1, 9)], k=4) == 0.25


class TestCalibration:
    def test_honest_scores_have_no_error(self):
        scores = np.repeat([0.05, 0.95], 100)
        labels = np.zeros(200, dtype=np.int8)
        labels[:5] = 1
        labels[100:195] = 1
        assert expected_calibration_error(labels, scores, num_bins=10) == pytest.approx(0)

    def test_the_error_is_weighted_by_rows(self):
        scores = np.array([0.1, 0.1, 0.1, 0.9])
        labels = np.array([0, 0, 0, 0], dtype=np.int8)
        error = expected_calibration_error(labels, scores, num_bins=2)
        assert error == pytest.approx((3 * 0.1 + 0.9) / 4)

    def test_a_score_of_one_falls_into_the_last_bin(self):
        bins = calibration_bins(np.array([1], dtype=np.int8), np.array([1.0]), num_bins=10)
        assert bins.counts.tolist() == [1]


class TestEvaluate:
    EXAMPLES = Examples(
        features=np.zeros((4, 1)), labels=np.array([0, 1, 0, 1], np.int8), frame=pl.DataFrame()
    )

    def test_each_metric_stands_under_its_name(self):
        metrics = (RocAuc(name="area"), CalibrationError())
        found = evaluate(metrics, self.EXAMPLES, np.array([0.1, 0.9, 0.2, 0.8]))
        assert found["area"] == 1.0
        assert found["calibration_error"] == pytest.approx(0.15)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_score_that_is_no_number_is_refused(self, bad):
        with pytest.raises(TrainingDataError, match="1 of 4 scores"):
            evaluate((RocAuc(),), self.EXAMPLES, np.array([0.1, bad, 0.2, 0.8]))


class TestNumbers:
    def test_each_is_what_its_definition_gives(self):
        test = Examples(
            features=np.zeros((4, 1)), labels=np.array([1.0, 2, 3, 6]), frame=pl.DataFrame()
        )
        metrics = (MeanAbsoluteError(), RootMeanSquaredError(), R2())
        found = evaluate(metrics, test, np.array([1.0, 4, 3, 2]))
        assert found == {
            "mean_absolute_error": pytest.approx((2 + 4) / 4),
            "root_mean_squared_error": pytest.approx(((4 + 16) / 4) ** 0.5),
            "r2": pytest.approx(1 - 20 / 14),
        }


def test_curves_run_from_corner_to_corner():
    drawn = curves(np.array([0, 1, 0, 1], np.int8), np.array([0.1, 0.9, 0.95, 0.8]))
    assert drawn.false_positive_rates[[0, -1]].tolist() == [0.0, 1.0]
    assert drawn.true_positive_rates[[0, -1]].tolist() == [0.0, 1.0]
    assert drawn.recalls[[0, -1]].tolist() == [1.0, 0.0]
