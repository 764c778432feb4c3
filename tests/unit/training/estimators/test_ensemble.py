"""Several estimators as one: one graph that answers as the members' own weights do."""

import numpy as np
import pytest
from pydantic import ValidationError

from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.declarations import (
    DecisionTree,
    Ensemble,
    LightGBM,
    LogisticRegression,
    Member,
    PreprocessingPolicy,
    Ridge,
    TorchMLP,
    XGBoost,
)
from penstock.training.estimators import ensemble, families
from penstock.training.estimators.base import FitJob

ROBUST = PreprocessingPolicy(scaling="robust")


def fitted_here(config, scaled, labels, folder):
    """What `ensemble.fit` does by Ray tasks."""
    columns = scaled.astype(np.float64)
    job = FitJob(name="fit", checkpoints=folder)
    again = [ensemble._again(member, columns) for member in config.members]
    fitted = [
        families.fit_here(member.estimator, own.apply(columns), labels, job)
        for member, own in zip(config.members, again, strict=True)
    ]
    return ensemble.together(config, again, fitted)


@pytest.fixture(scope="module")
def every_family():
    return Ensemble(
        members=(
            Member(estimator=LogisticRegression(), weight=1.0, preprocessing=ROBUST),
            Member(estimator=DecisionTree(max_depth=4), weight=2.0),
            Member(estimator=XGBoost(num_rounds=5, max_depth=3), weight=1.0),
            Member(estimator=LightGBM(num_rounds=5), weight=0.5),
            Member(
                estimator=TorchMLP(hidden_sizes=(4,), num_epochs=1),
                weight=0.5,
                preprocessing=PreprocessingPolicy(scaling="min_max"),
            ),
        )
    )


@pytest.fixture(scope="module")
def fitted(every_family, synthetic, tmp_path_factory):
    features, labels = synthetic
    names = tuple(f"f{i}" for i in range(features.shape[1]))
    scaling = preprocessing.fit(features, feature_names=names)
    folder = tmp_path_factory.mktemp("fit")
    return scaling, fitted_here(every_family, scaling.apply(features), labels, folder)


class TestEnsemble:
    def test_its_graph_answers_as_the_members_weights_do(self, fitted, synthetic):
        features, _ = synthetic
        scaling, whole = fitted
        graph = load_scorer(bundle.assemble(scaling, whole))(features)
        native = whole.native.predict(scaling.apply(features))
        assert np.abs(graph - native).max() < 1e-5

    def test_its_score_is_the_weighted_mean(self, every_family, fitted, synthetic):
        features, _ = synthetic
        scaling, whole = fitted
        columns = scaling.apply(features).astype(np.float64)
        each = [
            member.predict(own.apply(columns))
            for member, own in zip(whole.native.members, whole.native.preprocessings, strict=True)
        ]
        assert every_family.shares == pytest.approx((0.2, 0.4, 0.2, 0.1, 0.1))
        mean = np.average(each, axis=0, weights=every_family.shares)
        assert np.allclose(whole.native.predict(scaling.apply(features)), mean)

    def test_what_is_saved_answers_alike(self, fitted, synthetic, tmp_path):
        features, _ = synthetic
        scaling, whole = fitted
        whole.native.save(tmp_path)
        again = families.load("ensemble", tmp_path)
        rows = scaling.apply(features)
        assert np.array_equal(again.predict(rows), whole.native.predict(rows))

    def test_no_rows_give_no_scores(self, fitted):
        scaling, whole = fitted
        assert whole.native.predict(scaling.apply(np.empty((0, 6)))).shape == (0,)


class TestDeclaration:
    def test_members_of_different_kinds_are_refused(self):
        members = (
            Member(estimator=Ridge(), weight=1.0),
            Member(estimator=LogisticRegression(), weight=1.0),
        )
        with pytest.raises(ValidationError, match="different kinds"):
            Ensemble(members=members)

    @pytest.mark.parametrize("weight", [0.0, -1.0, float("nan")])
    def test_a_weight_is_above_zero(self, weight):
        with pytest.raises(ValidationError):
            Member(estimator=Ridge(), weight=weight)

    def test_it_survives_json(self, every_family):
        assert Ensemble.model_validate_json(every_family.model_dump_json()) == every_family
