"""Intervals of metrics: resamples by counts say what resampled copies would."""

from datetime import date, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.training.bootstrap import (
    RankedGroups,
    SortedRows,
    bounds,
    intervals,
    resample,
)
from penstock.training.declarations import (
    R2,
    AveragePrecision,
    Bootstrap,
    BrierScore,
    CalibrationError,
    LogLoss,
    MeanAbsoluteError,
    RocAuc,
    RootMeanSquaredError,
    TopGroupsPrecision,
)
from penstock.training.metrics import evaluate, top_groups_precision
from penstock.training.validation import DAY_COLUMN, Examples

CLASSES = (RocAuc(), AveragePrecision(), LogLoss(), BrierScore(), CalibrationError(num_bins=5))
NUMBERS = (MeanAbsoluteError(), RootMeanSquaredError(), R2())
FIRST = date(2024, 1, 1)


def examples(labels, groups=None, days=None):
    num_rows = len(labels)
    frame = pl.DataFrame(
        {
            "group": np.zeros(num_rows) if groups is None else groups,
            DAY_COLUMN: [FIRST + timedelta(days=int(d)) for d in (days or [0] * num_rows)],
        }
    )
    return Examples(features=np.zeros((num_rows, 1)), labels=labels, frame=frame)


def payments(num_rows, *, seed=0, shift=1.0, positives=0.05):
    random = np.random.default_rng(seed)
    labels = (random.random(num_rows) < positives).astype(np.int8)
    scores = 1 / (1 + np.exp(3 - shift * labels - random.normal(size=num_rows)))
    return labels, scores


class TestByCounts:
    @settings(max_examples=30, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.integers(0, 1), st.integers(0, 4), st.integers(0, 3)),
            min_size=2,
            max_size=30,
        ).filter(lambda rows: len({label for label, _, count in rows if count}) == 2)
    )
    def test_classes_are_measured_as_on_repeated_rows_however_many_scores_are_equal(self, rows):
        labels, scores, counts = (np.array(part) for part in zip(*rows, strict=True))
        labels, scores = labels.astype(np.int8), scores / 4
        sorted_rows = SortedRows.of(examples(labels), scores)
        found = sorted_rows.measure(CLASSES, counts[sorted_rows.order][None].astype(np.int32))
        repeated = examples(np.repeat(labels, counts))
        expected = evaluate(CLASSES, repeated, np.repeat(scores, counts))
        assert {name: values[0] for name, values in found.items()} == pytest.approx(expected)

    @settings(max_examples=30, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.integers(-9, 9), st.integers(-9, 9), st.integers(1, 3)),
            min_size=2,
            max_size=30,
        ).filter(lambda rows: len({label for label, _, _ in rows}) > 1)
    )
    def test_numbers_are_measured_as_on_repeated_rows(self, rows):
        labels, scores, counts = (np.array(part) for part in zip(*rows, strict=True))
        labels, scores = labels + 1e4, scores + 1e4
        sorted_rows = SortedRows.of(examples(labels), scores)
        found = sorted_rows.measure(NUMBERS, counts[sorted_rows.order][None].astype(np.int32))
        repeated = examples(np.repeat(labels, counts))
        expected = evaluate(NUMBERS, repeated, np.repeat(scores, counts))
        assert {name: values[0] for name, values in found.items()} == pytest.approx(expected)

    @settings(max_examples=30, deadline=None)
    @given(
        rows=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 5), st.integers(0, 1), st.integers(0, 9)),
            min_size=1,
            max_size=40,
        ),
        drawn=st.lists(st.integers(0, 3), min_size=6, max_size=6),
        k=st.integers(1, 4),
        drop_found=st.booleans(),
    )
    def test_a_group_that_is_drawn_twice_is_two_groups_alike(self, rows, drawn, k, drop_found):
        days, groups, labels, scores = (np.array(part) for part in zip(*rows, strict=True))
        metric = TopGroupsPrecision(name="top", group="group", k=k, drop_found=drop_found)
        test = examples(labels.astype(np.int8), groups, days.tolist())
        ranked = RankedGroups.of(metric, test, scores.astype(float))
        counts = np.array(drawn)[np.unique(groups)]
        copies = [
            (day, group * 10 + copy, label, score)
            for day, group, label, score in rows
            for copy in range(drawn[group])
        ]
        num_days = len(set(days.tolist()))
        expected = 0.0
        if copies:
            day, group, label, score = zip(*copies, strict=True)
            mean = top_groups_precision(
                days=pl.Series([FIRST + timedelta(days=d) for d in day]),
                groups=pl.Series(group),
                labels=np.array(label, np.int8),
                scores=np.array(score, float),
                k=k,
                drop_found=drop_found,
            )
            # A day of which no group was drawn has no hits.
            expected = mean * len(set(day)) / num_days
        found = ranked.measure(counts[None].astype(np.int32))
        assert found[0] == pytest.approx(expected)


class TestIntervals:
    def test_it_holds_the_metric_and_narrows_with_the_root_of_the_rows(self):
        widths = []
        for num_rows in (1_500, 24_000):
            labels, scores = payments(num_rows)
            test = examples(labels)
            found = intervals(CLASSES, test, scores, Bootstrap(num_resamples=200))
            for name, value in evaluate(CLASSES[:4], test, scores).items():
                low, high = found[name]
                assert low < value < high, name
            widths.append(found["roc_auc"][1] - found["roc_auc"][0])
        assert widths[0] / widths[1] == pytest.approx(4, rel=0.35)

    def test_it_covers_the_truth_about_as_often_as_it_says(self):
        truth = payments(200_000, seed=1, positives=0.3)
        (expected,) = evaluate((RocAuc(),), examples(truth[0]), truth[1]).values()
        hits = 0
        for seed in range(50):
            labels, scores = payments(400, seed=seed + 2, positives=0.3)
            low, high = intervals(
                (RocAuc(),), examples(labels), scores, Bootstrap(num_resamples=200, level=0.8)
            )["roc_auc"]
            hits += low <= expected <= high
        assert 34 <= hits <= 46

    def test_the_seed_decides_it_and_every_stream_has_its_own(self):
        labels, scores = payments(500)
        draw = [
            resample((RocAuc(),), examples(labels), scores, Bootstrap(num_resamples=100), stream=s)
            for s in (0, 0, 1)
        ]
        np.testing.assert_array_equal(draw[0]["roc_auc"], draw[1]["roc_auc"])
        assert not np.isclose(draw[0]["roc_auc"], draw[2]["roc_auc"]).any()

    def test_one_positive_row_is_in_every_resample(self):
        labels = np.zeros(50, dtype=np.int8)
        labels[7] = 1
        found = resample(
            (RocAuc(), AveragePrecision()),
            examples(labels),
            np.linspace(0, 1, 50),
            Bootstrap(num_resamples=100),
        )
        assert all(np.isfinite(values).all() for values in found.values())

    def test_days_that_err_together_widen_the_interval(self):
        random = np.random.default_rng(5)
        days = np.repeat(np.arange(40), 50)
        labels = random.normal(size=2_000)
        scores = labels + np.repeat(random.normal(size=40), 50)
        test = examples(labels, days=days.tolist())
        by_row, by_day = (
            intervals(NUMBERS, test, scores, Bootstrap(num_resamples=300, unit=unit))
            for unit in ("row", "day")
        )
        for name in by_row:
            assert np.ptp(by_day[name]) > 3 * np.ptp(by_row[name]), name

    def test_a_resample_that_lacks_a_class_says_nothing(self):
        # Two days, one of them without a positive: a quarter of the resamples has none.
        labels = np.array([0, 0, 0, 0, 1, 0], np.int8)
        test = examples(labels, days=[0, 0, 0, 1, 1, 1])
        drawn = resample(
            (RocAuc(),), test, np.linspace(0, 1, 6), Bootstrap(num_resamples=400, unit="day")
        )
        assert 0.15 < np.isnan(drawn["roc_auc"]).mean() < 0.35
        assert np.isfinite(bounds(drawn["roc_auc"], 0.95)).all()

    def test_a_ranking_of_groups_draws_groups(self):
        random = np.random.default_rng(2)
        groups = random.integers(0, 200, 3_000)
        labels = ((groups < 30) & (random.random(3_000) < 0.4)).astype(np.int8)
        scores = labels * 0.3 + random.random(3_000)
        test = examples(labels, groups, random.integers(0, 7, 3_000).tolist())
        metric = TopGroupsPrecision(name="top", group="group", k=10)
        low, high = intervals((metric,), test, scores, Bootstrap(num_resamples=200))["top"]
        (value,) = evaluate((metric,), test, scores).values()
        assert low < value < high
        assert high - low < 0.5
