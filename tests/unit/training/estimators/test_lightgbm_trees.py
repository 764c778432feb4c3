"""LightGBM's trees are its own, but for thresholds that a graph can hold."""

import lightgbm
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.declarations import LightGBM
from penstock.training.estimators import lightgbm_trees


@given(st.floats(-(2.0**127), 2.0**127), st.floats(-(2.0**127), 2.0**127, width=32))
def test_a_threshold_rounded_down_sends_every_float32_the_way_it_went(threshold, value):
    rounded = lightgbm_trees._round_down(threshold)
    assert (value <= float(rounded)) is (value <= threshold)
    near = np.nextafter(rounded, np.float32(np.inf))
    assert (float(near) <= float(rounded)) is (float(near) <= threshold)


def test_rows_that_lie_next_to_each_other_go_apart_in_the_graph_too():
    low = np.float32(1.0)
    high = np.nextafter(low, np.float32(2.0))
    # The middle of the two is no float32; rounded to the nearest one it would be one of them.
    scaled = np.array([[low], [high]] * 100, dtype=np.float32)
    labels = np.array([0, 1] * 100, dtype=np.int8)
    config = LightGBM(num_rounds=3, min_samples_leaf=1)
    fitted = lightgbm_trees.fit_here(config, scaled, labels)
    scaling = preprocessing.fit(
        scaled.astype(float),
        feature_names=("f",),
        policy=preprocessing.PreprocessingPolicy(scaling="none"),
    )
    scores = load_scorer(bundle.assemble(scaling, fitted))(scaled[:2].astype(float))
    assert scores[1] - scores[0] > 0.2
    np.testing.assert_allclose(scores, fitted.native.predict(scaled[:2]), atol=1e-6)


def test_the_declared_parameters_are_lightgbms_own(synthetic):
    features, labels = synthetic
    scaled = np.nan_to_num(features).astype(np.float32)
    fitted = lightgbm_trees.fit_here(LightGBM(num_rounds=10), scaled, labels)
    plain = {"objective": "binary", "verbosity": -1, "num_threads": 1}
    theirs = lightgbm.train(plain, lightgbm.Dataset(scaled, label=labels), 10)
    np.testing.assert_allclose(fitted.native.predict(scaled), theirs.predict(scaled), atol=1e-9)


def test_it_takes_no_gpu():
    with pytest.raises(ValidationError, match="use_gpu"):
        LightGBM(use_gpu=True)
