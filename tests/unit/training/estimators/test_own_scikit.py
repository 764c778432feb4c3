"""Estimators of scikit-learn by import path: fitted as they are, kept as their graph."""

import sys

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn.ensemble import ExtraTreesClassifier
from sklearn.linear_model import BayesianRidge

from own_estimators import curved
from penstock.errors import DeclarationError, NotFoundError
from penstock.training.declarations import ScikitEstimator
from penstock.training.estimators import families, own_scikit
from penstock.training.estimators.base import FitJob

EXTRA = "sklearn.ensemble:ExtraTreesClassifier"


class TestFit:
    def test_it_scores_as_scikit_learn_does_with_our_seed(self, rows):
        scaled, labels = rows
        config = ScikitEstimator(estimator=EXTRA, options={"n_estimators": 10}, seed=3)
        fitted = own_scikit.fit_here(config, scaled, labels)
        theirs = ExtraTreesClassifier(n_estimators=10, random_state=3).fit(scaled, labels)
        expected = theirs.predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(fitted.native.predict(scaled), expected, atol=1e-5)

    def test_a_number_is_predicted_too(self, rows):
        scaled, _ = rows
        numbers = 30.0 * scaled[:, 0] - 7.0
        config = ScikitEstimator(estimator="sklearn.linear_model:BayesianRidge", task="regression")
        fitted = own_scikit.fit_here(config, scaled, numbers)
        expected = BayesianRidge().fit(scaled, numbers).predict(scaled)
        np.testing.assert_allclose(fitted.native.predict(scaled), expected, rtol=1e-4, atol=1e-3)

    def test_a_users_pipeline_gets_its_options(self, rows):
        scaled, labels = rows
        config = ScikitEstimator(estimator="own_estimators:curved", options={"strength": 0.1})
        native = own_scikit.fit_native(config, scaled, labels)
        expected = curved(strength=0.1).fit(scaled, labels).predict_proba(scaled)[:, 1]
        np.testing.assert_allclose(native.predict(scaled), expected, atol=1e-5)

    def test_a_class_may_write_its_own_graph(self, rows):
        scaled, labels = rows
        config = ScikitEstimator(estimator="own_estimators:WrittenMiddle")
        native = own_scikit.fit_native(config, scaled, labels)
        np.testing.assert_allclose(native.predict(scaled), labels.mean(), rtol=1e-6)

    def test_it_survives_its_file(self, rows, tmp_path):
        scaled, labels = rows
        config = ScikitEstimator(estimator="own_estimators:curved")
        native = own_scikit.fit_native(config, scaled, labels)
        native.save(tmp_path)
        again = families.load("graph", tmp_path)
        np.testing.assert_array_equal(again.predict(scaled), native.predict(scaled))

    def test_it_is_imported_from_the_jobs_folders(self, rows, tmp_path, monkeypatch):
        (tmp_path / "reservoir_of_trees.py").write_text(
            "from sklearn.tree import DecisionTreeClassifier as Oak\n"
        )
        monkeypatch.setattr(sys, "path", list(sys.path))
        job = FitJob(name="fit", checkpoints=tmp_path, import_folders=(str(tmp_path),))
        config = ScikitEstimator(estimator="reservoir_of_trees:Oak", options={"max_depth": 2})
        scores = own_scikit.fit_native(config, *rows, job).predict(rows[0])
        assert len(np.unique(scores)) <= 4


class TestRefusals:
    @pytest.mark.parametrize(
        ("path", "options", "words"),
        [
            ("sklearn.ensemble:Absent", {}, "cannot be imported"),
            ("own_estimators:curved", {"degree": "two"}, "option degree of .* is 'two'"),
            ("sklearn.preprocessing:StandardScaler", {}, r"without predict_proba\(\)"),
            (EXTRA, {"max_depth": -1}, "cannot be fitted: .*max_depth"),
            ("own_estimators:Middle", {}, "cannot be written as an ONNX graph"),
            ("own_estimators:MiswrittenMiddle", {}, "up to 0.01 off its own"),
        ],
    )
    def test_what_does_not_do_is_told(self, rows, path, options, words):
        config = ScikitEstimator(estimator=path, options=options)
        with pytest.raises(DeclarationError, match=words):
            own_scikit.fit_here(config, *rows)

    def test_the_nearest_option_is_offered(self, rows):
        config = ScikitEstimator(estimator=EXTRA, options={"max_dept": 2})
        with pytest.raises(NotFoundError, match="did you mean 'max_depth'"):
            own_scikit.fit_here(config, *rows)

    def test_what_is_no_path_is_refused_where_it_is_declared(self):
        with pytest.raises(ValidationError, match="estimator"):
            ScikitEstimator(estimator="ExtraTreesClassifier")
