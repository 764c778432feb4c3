"""What features tell of a label."""

from functools import partial

import numpy as np
import polars as pl
import pytest
from scipy.stats import spearmanr
from sklearn.metrics import average_precision_score, mean_absolute_error

from penstock.errors import TrainingDataError
from penstock.training.importance import (
    Fold,
    added_value,
    keep,
    mutual_information,
    permutation_importance,
    rank_correlations,
    sample,
    score_alone,
)
from penstock.training.validation import Examples

NAMES = ("strong", "weak", "none", "flag", "absent")


def side(task, *, seed, num_rows=1_500):
    """`strong` and `weak` make the label, `flag` and `none` do not, `absent` has no value."""
    rng = np.random.default_rng(seed)
    features = rng.normal(size=(num_rows, len(NAMES)))
    features[:, 3] = rng.random(num_rows) < 0.3
    features[:, 4] = np.nan
    signal = 3 * features[:, 0] + features[:, 1] + rng.normal(size=num_rows)
    labels = (signal > 1).astype(np.int8) if task == "binary" else signal
    features[rng.random(num_rows) < 0.1, 1] = np.nan
    return Examples(features=features, labels=labels, frame=pl.DataFrame({"row": range(num_rows)}))


def fold(task="binary", seed=0):
    train, test = side(task, seed=1), side(task, seed=2)
    return Fold(train=train, test=test, feature_names=NAMES, task=task, seed=seed)


def measure(task, test, scores):
    if task == "binary":
        return average_precision_score(test.labels, scores)
    return -mean_absolute_error(test.labels, scores)


@pytest.mark.parametrize("task", ["binary", "regression"])
class TestBothKindsOfLabels:
    def test_mutual_information_ranks_what_makes_the_label_first(self, task):
        found = dict(zip(NAMES, mutual_information(fold(task)), strict=True))
        assert found["strong"] > found["weak"] > 0.01
        assert found["flag"] < 0.01
        assert found["absent"] == 0.0

    def test_shuffling_what_makes_the_label_hurts_more_than_noise(self, task):
        found = permutation_importance(fold(task), partial(measure, task))
        of = dict(zip(NAMES, found.importance, strict=True))
        assert of["strong"] > of["weak"] > found.noise
        assert abs(of["none"]) < of["weak"] / 2
        assert of["absent"] == 0.0

    def test_the_seed_decides_all_of_it(self, task):
        first, again, other = (
            permutation_importance(fold(task, seed), partial(measure, task)) for seed in (3, 3, 4)
        )
        assert first == again
        assert first != other


class TestAddedValue:
    def twins(self, noise):
        """Two features that order rows alike; the label is made of their difference, or of one."""
        sides = []
        for seed in (1, 2):
            rng = np.random.default_rng(seed)
            first = rng.normal(size=1_500) * 10
            second = first + rng.normal(size=1_500) * 0.5
            labels = (
                second - first if noise is None else first + noise * rng.normal(size=1_500)
            ) > 0
            sides.append(
                Examples(
                    features=np.column_stack([first, second]),
                    labels=labels.astype(np.int8),
                    frame=pl.DataFrame({"row": range(1_500)}),
                )
            )
        names = ("first", "second")
        return Fold(train=sides[0], test=sides[1], feature_names=names, task="binary", seed=0)

    def test_a_twin_that_tells_by_the_difference_adds_more_than_noise(self):
        fold = self.twins(None)
        assert rank_correlations(fold.train.features, fold.feature_names)[0, 1] > 0.99
        found = added_value(fold, [0], [1], partial(measure, "binary"))
        assert found.gains[0] > 0.2 > found.noise

    def test_a_twin_that_says_the_same_adds_nothing(self):
        found = added_value(self.twins(3.0), [0], [1], partial(measure, "binary"))
        assert abs(found.gains[0]) < 0.02


def test_the_metric_of_some_features_alone():
    both = partial(measure, "binary")
    strong, none = (score_alone(keep(fold(), [place]), both) for place in (0, 2))
    assert strong > none + 0.2


def test_of_no_feature_the_metric_is_that_of_one_guess():
    base = fold().test.labels.mean()
    assert score_alone(keep(fold(), []), partial(measure, "binary")) == pytest.approx(base)


def test_rank_correlations_are_spearmans():
    rng = np.random.default_rng(0)
    base = rng.normal(size=(500, 3))
    features = np.column_stack([base, np.exp(base[:, 0]), np.round(base[:, 1]), np.ones(500)])
    got = rank_correlations(features, tuple("abcdef"))
    expected = spearmanr(features[:, :5]).statistic
    np.testing.assert_allclose(got[:5, :5], expected, atol=1e-6)
    assert got[0, 3] == pytest.approx(1.0)
    assert got[5].tolist() == [0.0] * 6


def test_an_infinite_value_is_refused_by_its_features_name():
    bad = fold()
    bad.train.features[0, 2] = np.inf
    with pytest.raises(TrainingDataError, match="infinite values in none"):
        mutual_information(bad)


class TestSample:
    def test_it_keeps_order_and_keeps_rows_together(self):
        few = sample(side("regression", seed=1), 100, seed=0)
        rows = few.frame["row"].to_list()
        whole = side("regression", seed=1)
        assert rows == sorted(rows)
        assert len(set(rows)) == 100
        np.testing.assert_array_equal(few.labels, whole.labels[rows])
        np.testing.assert_array_equal(few.features, whole.features[rows])

    def test_few_rows_are_all_taken(self):
        whole = side("binary", seed=1)
        assert sample(whole, 1_500, seed=0) is whole


def test_features_are_kept_by_their_places():
    kept = keep(fold(), [2, 0])
    assert kept.feature_names == ("none", "strong")
    np.testing.assert_array_equal(kept.test.features[:, 1], fold().test.features[:, 0])
