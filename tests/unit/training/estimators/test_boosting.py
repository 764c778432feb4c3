"""Boosted trees in this process: what is held out, when it ends, and going on after a loss."""

from datetime import timedelta
from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.errors import TrainingDataError
from penstock.training.declarations import BoostingStop, LightGBM, XGBoost
from penstock.training.estimators import boosting, lightgbm_trees, xgboost_trees
from penstock.training.estimators.base import FitJob

LIBRARIES = {
    XGBoost: lambda config: partial(xgboost_trees._XGBoost, config, use_gpu=False),
    LightGBM: lambda config: partial(lightgbm_trees._LightGBM, config, network={}),
}
KINDS = pytest.mark.parametrize("kind", [XGBoost, LightGBM])
FIT_HERE = {XGBoost: xgboost_trees.fit_here, LightGBM: lightgbm_trees.fit_here}


@pytest.fixture(scope="module")
def rows(synthetic):
    features, labels = synthetic
    return np.nan_to_num(features / np.nanstd(features, axis=0)).astype(np.float32), labels


def boost(config, rows, state=None):
    """Give the last state and every one that was reported."""
    reported = []

    def report(_losses, snapshot):
        state = snapshot()
        reported.append(boosting.State(model=state.model, history=list(state.history)))

    mine = boosting.share_of(boosting.plan(config, rows[1], None), *rows, rank=0, world=1)
    library = LIBRARIES[type(config)](config)(mine)
    return boosting.boost(config, library, state or boosting.State(), report), reported


@KINDS
@pytest.mark.parametrize("share", [1.0, 0.5])
def test_a_fit_that_was_lost_ends_as_one_that_was_not(rows, kind, share):
    config = kind(num_rounds=40, subsample=share, column_sample_by_tree=share)
    whole, reported = boost(config, rows)
    assert [len(state.history) for state in reported] == [25, 40]
    again, _ = boost(config, rows, reported[0])
    assert again.history == whole.history
    scores = [boosted(kind, state.model).predict(rows[0]) for state in (whole, again)]
    np.testing.assert_array_equal(*scores)
    # A fit that begins with other seeds draws other rows: the equality above is not for nothing.
    other, _ = boost(config.model_copy(update={"seed": 1}), rows)
    assert (other.history == whole.history) is not config.draws


def boosted(kind, model):
    if kind is XGBoost:
        booster = xgboost_trees.xgboost.Booster(model_file=bytearray(model))
        return xgboost_trees.BoostedTrees(booster=booster)
    booster = lightgbm_trees.lightgbm.Booster(model_str=model.decode())
    return lightgbm_trees.LeafwiseTrees(booster=booster)


@KINDS
def test_early_stopping_keeps_the_trees_up_to_the_best_round(rows, kind):
    config = kind(num_rounds=300, learning_rate=0.3, early_stopping=BoostingStop(patience_rounds=4))
    fitted = FIT_HERE[kind](config, *rows)
    losses = [each["validation_loss"] for each in fitted.history]
    best = losses.index(min(losses)) + 1
    assert len(losses) == best + 4 < 300
    assert fitted.facts == {"rounds_kept": f"{best} of {best + 4}"}
    booster = fitted.native.booster
    kept = booster.num_boosted_rounds() if kind is XGBoost else booster.num_trees()
    assert kept == best
    # What it says of the held-out rows is what the kept trees say of them.
    scaled, labels = rows
    held = slice(len(labels) - round(len(labels) * 0.1), None)
    scores = fitted.native.predict(scaled[held])
    loss = -np.mean(np.where(labels[held] == 1, np.log(scores), np.log(1 - scores)))
    assert loss == pytest.approx(min(losses), abs=1e-4)


@KINDS
def test_a_stop_that_was_reported_is_not_boosted_past(rows, kind):
    config = kind(num_rounds=300, learning_rate=0.3, early_stopping=BoostingStop(patience_rounds=4))
    whole, reported = boost(config, rows)
    again, more = boost(config, rows, reported[-1])
    assert (again, more) == (whole, [])


@given(
    losses=st.lists(st.floats(0, 9), max_size=30),
    patience=st.integers(1, 5),
    num_rounds=st.integers(1, 30),
)
def test_it_is_over_when_the_best_round_lies_as_far_back_as_patience_goes(
    losses, patience, num_rounds
):
    config = XGBoost(num_rounds=num_rounds, early_stopping=BoostingStop(patience_rounds=patience))
    history = [{"validation_loss": loss} for loss in losses]
    best = boosting.best_round(config, history)
    assert best == 0 if not losses else losses[best - 1] == min(losses)
    expected = len(losses) >= num_rounds or len(losses) - best >= patience
    assert boosting.is_over(config, history) is expected


def test_the_labels_delay_parts_the_rows_that_train_from_those_held_out():
    labels = np.arange(100) % 2
    times = np.datetime64("2024-01-01", "us") + np.arange(100).astype("timedelta64[h]")
    job = FitJob(name="f", checkpoints=None, event_times=times, label_delay=timedelta(hours=24))
    config = XGBoost(early_stopping=BoostingStop(validation_share=0.2), positive_weight="balanced")
    plan = boosting.plan(config, labels, job)
    assert (plan.holdout.num_training_rows, plan.holdout.first_validation_row) == (57, 80)
    scaled = np.arange(100, dtype=np.float32)[:, None]
    parts = [boosting.share_of(plan, scaled, labels, rank=r, world=2) for r in (0, 1)]
    trained = sorted(row for part in parts for row in part.scaled[:, 0])
    assert trained == list(range(57))
    assert all(part.held_out[0][:, 0].tolist() == list(range(80, 100)) for part in parts)
    assert all(part.positive_weight == 29 / 28 for part in parts)


@KINDS
def test_a_weight_of_positives_raises_their_scores(rows, kind):
    scaled, labels = rows
    plain, weighed = (
        FIT_HERE[kind](kind(num_rounds=10, positive_weight=weight), scaled, labels)
        .native.predict(scaled)
        .mean()
        for weight in (None, "balanced")
    )
    assert plain == pytest.approx(labels.mean(), abs=0.03)
    assert weighed > 1.5 * plain


def test_one_class_cannot_be_balanced():
    labels = np.repeat([0, 1], [90, 10])
    config = XGBoost(early_stopping=BoostingStop(), positive_weight="balanced")
    with pytest.raises(TrainingDataError, match="0 of the 90 rows to train on are positive"):
        boosting.plan(config, labels, None)


@KINDS
def test_a_weight_of_positives_has_no_place_beside_numbers(kind):
    with pytest.raises(ValidationError, match="for two classes"):
        kind(loss="squared_error", positive_weight=2.0)
