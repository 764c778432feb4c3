"""Fits over folds: each test row is scored by the fit of its own fold."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from penstock.errors import TrainingDataError
from penstock.progress import silent
from penstock.training.declarations import (
    GatePolicy,
    MeanAbsoluteError,
    Model,
    Ridge,
    RollingTimeSplit,
)
from penstock.training.estimators import scikit
from penstock.training.folds import count_folds, fit_folds
from penstock.training.metrics import evaluate

START = datetime(2024, 1, 1, tzinfo=UTC)
MODEL = Model(
    name="levels",
    label_table="reservoir.readings",
    label="level",
    feature_service="reservoir_v1",
    split=RollingTimeSplit(
        train_start=START,
        test_start=START + timedelta(days=10),
        test_end=START + timedelta(days=25),
        refit_every=timedelta(days=10),
        label_delay=timedelta(days=1),
    ),
    estimators={"ridge": Ridge()},
    default_estimator="ridge",
    metrics=(MeanAbsoluteError(),),
    primary_metric="mean_absolute_error",
    gate=GatePolicy(metric="mean_absolute_error"),
)


@pytest.fixture
def frame():
    """One row an hour; what the feature says of the label turns round after 15 days."""
    hours = np.arange(24 * 25)
    feature = np.sin(hours)
    return pl.DataFrame(
        {
            "at": [START + timedelta(hours=int(h)) for h in hours],
            "rain": feature,
            "level": np.where(hours < 15 * 24, 10 * feature, -10 * feature),
        }
    ).with_columns(pl.col("at").dt.cast_time_unit("us"))


def fitted(frame, seen, model=MODEL):
    def fit(number, scaled, labels, times):
        seen.append((number, len(labels)))
        assert len(times) == len(labels)
        assert (np.diff(times) >= np.timedelta64(0)).all()
        return scikit.fit_here(Ridge(), scaled, labels)

    return fit_folds(
        frame, model, event_time="at", feature_names=("rain",), fit=fit, progress=silent
    )


def test_every_test_row_is_scored_once_by_a_fit_on_what_was_known(frame):
    seen = []
    folds = fitted(frame, seen)
    # The label's day of delay is kept out of each fit.
    assert seen == [(0, 9 * 24), (1, 19 * 24)]
    assert folds.test.frame["at"].to_list() == frame["at"][240:].to_list()
    first = folds.scores[: 10 * 24]
    np.testing.assert_allclose(first, 10 * frame["rain"][240:480].to_numpy(), atol=0.2)
    assert evaluate(MODEL.metrics, folds.test, folds.scores)["mean_absolute_error"] > 5


def test_the_last_fit_is_the_one_that_is_kept(frame):
    folds = fitted(frame, [])
    scaled = folds.scaling.apply(folds.test.features[-5 * 24 :])
    np.testing.assert_allclose(
        folds.fitted.native.predict(scaled), folds.scores[-5 * 24 :], atol=1e-4
    )


def test_a_baseline_is_the_feature_itself_or_the_mean_of_what_was_known(frame):
    assert fitted(frame, []).guesses is None
    gaps = frame.with_columns(rain=pl.when(pl.col("at").dt.hour() > 0).then("rain"))
    guesses = fitted(gaps, [], MODEL.model_copy(update={"baseline": "rain"})).guesses
    missing = gaps["rain"][240:].is_null().to_numpy()
    np.testing.assert_array_equal(guesses[~missing], gaps["rain"][240:].drop_nulls().to_numpy())
    means = [frame["level"].head(24 * days).mean() for days in (9, 19)]
    np.testing.assert_allclose(guesses[missing], [means[0]] * 10 + [means[1]] * 5)


def test_examples_are_counted_over_all_folds_and_none_is_positive(frame):
    counts = count_folds(frame, MODEL, event_time="at")
    assert counts.num_training_rows == 19 * 24
    assert counts.num_test_rows == 15 * 24
    assert counts.num_training_positives is counts.num_test_positives is None


def test_a_later_fold_without_rows_is_refused_before_the_first_fit(frame):
    with pytest.raises(TrainingDataError, match="test split has no rows"):
        count_folds(frame.head(24 * 20), MODEL, event_time="at")
