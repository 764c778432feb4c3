"""Filling and scaling."""

import json

import numpy as np
import pytest

from penstock.errors import TrainingDataError
from penstock.training.preprocessing import Preprocessing, fit

NAMES = ("a", "b")


class TestFit:
    def test_training_rows_come_out_with_mean_0_and_deviation_1(self, synthetic):
        features, _ = synthetic
        scaled = fit(features, feature_names=tuple("abcdef")).apply(features)
        assert scaled.dtype == np.float32
        present = ~np.isnan(features)
        for column in range(6):
            values = scaled[present[:, column], column]
            assert values.mean() == pytest.approx(0, abs=1e-5)
            assert values.std() == pytest.approx(1, abs=1e-4)

    def test_a_missing_value_becomes_the_mean_which_is_0(self):
        fitted = fit(np.array([[1.0, 5.0], [3.0, np.nan]]), feature_names=NAMES)
        assert fitted.apply(np.array([[np.nan, np.nan]])).tolist() == [[0.0, 0.0]]

    def test_a_constant_feature_stays_at_0(self):
        fitted = fit(np.array([[1.0, 5.0], [3.0, 5.0]]), feature_names=NAMES)
        assert fitted.apply(np.array([[2.0, 5.0]])).tolist() == [[0.0, 0.0]]

    def test_a_feature_that_is_always_missing_is_named(self):
        with pytest.raises(TrainingDataError, match="missing in every training row: b"):
            fit(np.array([[1.0, np.nan], [3.0, np.nan]]), feature_names=NAMES)

    def test_an_infinite_value_is_refused(self):
        with pytest.raises(TrainingDataError, match="infinite values in a"):
            fit(np.array([[np.inf, 1.0], [3.0, 2.0]]), feature_names=NAMES)

    def test_it_rounds_once_at_the_end(self):
        # In float32 the difference of these two large numbers would be 0.
        fitted = Preprocessing(means=np.array([1e9]), scales=np.array([1.0]))
        assert fitted.apply(np.array([[1e9 + 1]])).tolist() == [[1.0]]


def test_it_survives_json_exactly(synthetic):
    features, _ = synthetic
    fitted = fit(features, feature_names=tuple("abcdef"))
    read = Preprocessing.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(read.apply(features), fitted.apply(features))
