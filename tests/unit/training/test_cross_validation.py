"""An estimator on folds: each row is scored by a fit that has not seen it, wherever it runs."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from penstock.cluster.tasks import run_here
from penstock.errors import TrainingDataError
from penstock.training.cross_validation import FoldScores, each_fold
from penstock.training.declarations import (
    BoostingStop,
    Bootstrap,
    DecisionTree,
    GatePolicy,
    LightGBM,
    LogisticRegression,
    LogLoss,
    Model,
    RocAuc,
    TimeSplit,
    TorchMLP,
    XGBoost,
)
from penstock.training.estimators import families, xgboost_trees
from penstock.training.estimators.base import FitJob

START = datetime(2024, 1, 1, tzinfo=UTC)
DAY = timedelta(days=1)
FEATURES = ("rain", "wind")
FOLDS = tuple(
    TimeSplit(
        train_start=START + n * 5 * DAY,
        train_end=START + (n * 5 + 10) * DAY,
        test_start=START + (n * 5 + 12) * DAY,
        test_end=START + (n * 5 + 17) * DAY,
        label_delay=2 * DAY,
    )
    for n in range(3)
)
JOB = FitJob(name="fit", checkpoints=None)
MODEL = Model(
    name="spills",
    label_table="reservoir.readings",
    label="spilled",
    feature_service="reservoir_v1",
    split=FOLDS[-1],
    estimators={"logistic_regression": LogisticRegression()},
    default_estimator="logistic_regression",
    metrics=(RocAuc(), LogLoss()),
    primary_metric="roc_auc",
    gate=GatePolicy(metric="roc_auc"),
)


@pytest.fixture(scope="module")
def frame():
    """Four rows an hour for 27 days, in no order of time; the rain decides, more and more."""
    random = np.random.default_rng(3)
    num_rows = 27 * 24 * 4
    quarters = random.permutation(num_rows)
    rain, wind = random.normal(size=(2, num_rows))
    strength = quarters / num_rows * 4
    spilled = random.random(num_rows) < 1 / (1 + np.exp(1 - strength * rain))
    return pl.DataFrame(
        {
            "at": [START + timedelta(minutes=15 * int(q)) for q in quarters],
            "rain": rain,
            "wind": wind,
            "spilled": spilled.astype(np.int8),
        }
    ).with_columns(pl.col("at").dt.cast_time_unit("us"))


def scored(frame, config=None, model=MODEL, **more):
    arguments = {"event_time": "at", "feature_names": FEATURES, "folds": FOLDS, "job": JOB} | more
    results = each_fold(frame, model, config or LogisticRegression(), **arguments)
    return FoldScores(folds=tuple(results))


class TestResults:
    def test_each_fold_tells_its_number_and_its_rows(self, frame):
        found = scored(frame)
        assert [fold.number for fold in found.folds] == [1, 2, 3]
        for fold in found.folds:
            assert (fold.counts.num_training_rows, fold.counts.num_test_rows) == (960, 480)

    def test_mean_and_deviation_are_those_over_the_folds(self, frame):
        found = scored(frame)
        values = [fold.metrics["roc_auc"] for fold in found.folds]
        assert found.mean("roc_auc") == pytest.approx(np.mean(values))
        assert found.deviation("roc_auc") == pytest.approx(np.std(values, ddof=1))
        assert scored(frame, folds=FOLDS[:1]).deviation("roc_auc") is None
        assert values[-1] > values[0], "the rain decides more and more"

    def test_a_folds_scores_do_not_change_with_the_labels_of_its_test(self, frame):
        turned = frame.with_columns(
            spilled=pl.when(pl.col("at") >= FOLDS[1].test_start_utc)
            .then(1 - pl.col("spilled"))
            .otherwise("spilled")
        )
        before, after = scored(frame).folds[1], scored(turned).folds[1]
        # So it is where the same scores stand beside the other class.
        assert after.metrics["roc_auc"] == pytest.approx(1 - before.metrics["roc_auc"], abs=1e-12)

    def test_the_interval_is_that_of_the_mean_over_folds_of_their_own_resamples(self, frame):
        found = scored(frame, bootstrap=Bootstrap(num_resamples=200))
        low, high = found.interval("roc_auc", level=0.9)
        assert low < found.mean("roc_auc") < high
        alone = scored(frame, folds=FOLDS[:1], bootstrap=Bootstrap(num_resamples=200))
        first = alone.interval("roc_auc", level=0.9)
        assert high - low < first[1] - first[0], "three tests say more than one"
        assert scored(frame).folds[0].resampled == {}

    def test_folds_that_were_drawn_less_often_shorten_the_others(self, frame):
        folds = scored(frame, bootstrap=Bootstrap(num_resamples=200)).folds
        few = {name: values[:150] for name, values in folds[0].resampled.items()}
        low, high = FoldScores(folds=(replace(folds[0], resampled=few), *folds[1:])).interval(
            "roc_auc", level=0.9
        )
        assert low < high

    def test_what_is_held_out_to_stop_early_is_the_newest_whatever_the_order_of_rows(self, frame):
        config = XGBoost(num_rounds=30, early_stopping=BoostingStop(patience_rounds=2))
        mixed, ordered = scored(frame, config), scored(frame.sort("at"), config)
        for one, other in zip(mixed.folds, ordered.folds, strict=True):
            assert one.metrics == pytest.approx(other.metrics)

    def test_a_baseline_is_measured_on_the_same_rows(self, frame):
        from penstock.training.declarations import MeanAbsoluteError, Ridge

        model = MODEL.model_copy(
            update={
                "label": "wind",
                "estimators": {"ridge": Ridge()},
                "default_estimator": "ridge",
                "metrics": (MeanAbsoluteError(),),
                "baseline": "rain",
            }
        )
        fold = scored(frame, Ridge(), model).folds[0]
        first = FOLDS[0]
        rows = frame.filter(
            pl.col("at").is_between(first.test_start_utc, first.test_end_utc, closed="left")
        )
        error = (rows["rain"] - rows["wind"]).abs().mean()
        assert fold.baseline == {"mean_absolute_error": pytest.approx(error)}


class TestCourse:
    def test_who_has_seen_enough_fits_no_further_fold(self, frame):
        started = []

        def run(function, calls):
            for call in calls:
                started.append(call["number"])
                yield function(**call)

        results = each_fold(
            frame,
            MODEL,
            LogisticRegression(),
            event_time="at",
            feature_names=FEATURES,
            folds=FOLDS,
            job=JOB,
            run=run,
        )
        assert next(results).number == 1
        results.close()
        assert started == [1]

    def test_a_fold_without_rows_is_refused(self, frame):
        late = TimeSplit(
            train_start=START + 40 * DAY,
            train_end=START + 50 * DAY,
            test_start=START + 50 * DAY,
            test_end=START + 60 * DAY,
        )
        with pytest.raises(TrainingDataError, match="training split has no rows"):
            scored(frame, folds=(late,))

    def test_only_several_workers_or_a_gpu_take_ray_train(self):
        alone = [LogisticRegression(num_cpus=2), XGBoost(), LightGBM(), TorchMLP()]
        assert [families.cpus_of_one_task(config) for config in alone] == [2, 1, 1, 1]
        for config in (TorchMLP(num_workers=2), XGBoost(num_workers=2), XGBoost(use_gpu=True)):
            assert families.cpus_of_one_task(config) is None


class TestOneTask:
    def test_boosted_trees_are_fitted_by_one_task_to_what_a_worker_would_fit(self, frame):
        config = XGBoost(num_rounds=5, max_depth=2)
        assert scored(frame, config).mean("roc_auc") > 0.7
        features = frame.select(FEATURES).to_numpy().astype(np.float32)
        fitted = xgboost_trees.fit_here(config, features, frame["spilled"].to_numpy(), JOB)
        losses = [epoch["train_loss"] for epoch in fitted.history]
        assert len(losses) == 5
        assert losses == sorted(losses, reverse=True)


@pytest.mark.ray
@pytest.mark.usefixtures("connected")
class TestOnRay:
    def test_folds_that_run_side_by_side_say_what_they_say_here(self, frame):
        here = scored(frame, DecisionTree(max_depth=3), run=run_here)
        there = scored(frame, DecisionTree(max_depth=3))
        assert [fold.metrics for fold in here.folds] == [fold.metrics for fold in there.folds]
