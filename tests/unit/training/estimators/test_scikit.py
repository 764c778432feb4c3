"""scikit-learn's estimators, and their rebuilt selves."""

import numpy as np
import pytest
from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor
from sklearn.linear_model import LogisticRegression as Linear
from sklearn.linear_model import Ridge as LinearNumber

from penstock.training.declarations import DecisionTree, LogisticRegression, RandomForest, Ridge
from penstock.training.estimators import scikit


class TestForest:
    def test_rebuilt_trees_predict_what_scikit_learn_does(self, rows):
        scaled, labels = rows
        forest = RandomForestClassifier(n_estimators=20, random_state=0).fit(scaled, labels)
        rebuilt = scikit.Forest.from_trees([member.tree_ for member in forest.estimators_])
        expected = forest.predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(rebuilt.predict(scaled), expected, atol=1e-12)

    def test_a_forest_survives_its_file(self, rows, tmp_path):
        scaled, labels = rows
        fitted = scikit.fit_here(RandomForest(num_trees=3), scaled, labels)
        fitted.native.save(tmp_path)
        read = scikit.Forest.load(tmp_path)
        np.testing.assert_array_equal(read.predict(scaled), fitted.native.predict(scaled))

    def test_a_tree_that_is_a_single_leaf_predicts(self, rows):
        scaled, labels = rows
        fitted = scikit.fit_here(DecisionTree(min_samples_leaf=1500), scaled, labels)
        np.testing.assert_allclose(fitted.native.predict(scaled[:3]), labels.mean())

    def test_the_declared_depth_holds(self, rows):
        scaled, labels = rows
        fitted = scikit.fit_here(DecisionTree(max_depth=2), scaled, labels)
        assert len(np.unique(fitted.native.predict(scaled))) <= 4


class TestNumbers:
    def test_a_forest_and_a_ridge_predict_what_scikit_learn_does(self, rows):
        scaled, _ = rows
        scaled = (scaled - scaled.mean(axis=0)) / scaled.std(axis=0)
        labels = 30 * scaled[:, 0] + 7 * scaled[:, 2] - 100.0
        forest = RandomForest(num_trees=5, criterion="squared_error")
        for config, theirs in (
            (forest, RandomForestRegressor(n_estimators=5, random_state=0)),
            (Ridge(penalty=2.0), LinearNumber(alpha=2.0)),
        ):
            fitted = scikit.fit_here(config, scaled, labels)
            expected = theirs.fit(scaled, labels).predict(scaled)
            # float32: of a sum of terms around 100, what is left near zero has their error.
            np.testing.assert_allclose(
                fitted.native.predict(scaled), expected, rtol=1e-4, atol=1e-4
            )

    def test_a_ridge_survives_its_file(self, tmp_path):
        model = scikit.LinearModel(weights=np.array([2.0]), bias=-1.0, link="identity")
        model.save(tmp_path)
        row = np.array([[3.0]], dtype=np.float32)
        assert scikit.LinearModel.load(tmp_path).predict(row).tolist() == [5.0]

    def test_weights_written_before_there_was_a_link_are_a_logistic_regressions(self, tmp_path):
        (tmp_path / "linear.json").write_text('{"weights": [0.0], "bias": 0.0}')
        row = np.array([[3.0]], dtype=np.float32)
        assert scikit.LinearModel.load(tmp_path).predict(row).tolist() == [0.5]


class TestLinear:
    def test_it_predicts_what_scikit_learn_does(self, rows):
        scaled, labels = rows
        scaled = (scaled - scaled.mean(axis=0)) / scaled.std(axis=0)
        expected = Linear(random_state=0).fit(scaled, labels).predict_proba(scaled)[:, 1]
        fitted = scikit.fit_here(LogisticRegression(), scaled, labels)
        np.testing.assert_allclose(fitted.native.predict(scaled), expected, atol=1e-6)

    def test_an_extreme_row_scores_0_or_1_and_warns_of_nothing(self):
        model = scikit.LinearModel(weights=np.array([1.0]), bias=0.0)
        scores = model.predict(np.array([[-1e30], [1e30]], dtype=np.float32))
        assert scores.tolist() == [0.0, 1.0]


@pytest.mark.parametrize("weight", [4.0, "balanced"])
@pytest.mark.parametrize(
    "config",
    [LogisticRegression(inverse_regularization=1e6), DecisionTree(), RandomForest(num_trees=30)],
    ids=lambda config: config.kind,
)
def test_a_positive_row_weighs_as_many_negative_ones_as_declared(rows, config, weight):
    _, labels = rows
    # Nothing to tell rows apart by: every score is the share of positives, by weight.
    blank = np.zeros((len(labels), 2), dtype=np.float32)
    weighed = config.model_copy(update={"positive_weight": weight})
    positives = labels.sum() * (4.0 if weight == 4.0 else (labels == 0).sum() / labels.sum())
    expected = positives / (positives + (labels == 0).sum())
    score = scikit.fit_native(weighed, blank, labels).predict(blank[:1])
    assert score[0] == pytest.approx(expected, abs=0.02)
    plain = scikit.fit_native(config, blank, labels).predict(blank[:1])
    assert plain[0] == pytest.approx(labels.mean(), abs=0.02)


def test_the_same_seed_gives_the_same_forest(rows):
    scaled, labels = rows
    config = RandomForest(num_trees=5, seed=3)
    first, second = (scikit.fit_here(config, scaled, labels).native for _ in range(2))
    np.testing.assert_array_equal(first.predict(scaled), second.predict(scaled))
    other = scikit.fit_here(config.model_copy(update={"seed": 4}), scaled, labels).native
    assert not np.array_equal(first.predict(scaled), other.predict(scaled))
