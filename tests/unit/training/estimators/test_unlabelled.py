"""Isolation forests and k-means: rebuilt they say what scikit-learn says."""

import numpy as np
import pytest
from sklearn.cluster import KMeans as Clustering
from sklearn.ensemble import IsolationForest as Isolating

from penstock.errors import TrainingDataError
from penstock.training.declarations import IsolationForest, KMeans
from penstock.training.estimators import unlabelled

NOBODY = np.zeros(0, dtype=np.int8)


@pytest.fixture(scope="module")
def scaled(synthetic):
    features, _ = synthetic
    return np.nan_to_num(features / np.nanstd(features, axis=0)).astype(np.float32)


@pytest.mark.parametrize("num_rows", [2, 100, 5_000])
def test_an_isolation_forest_scores_as_scikit_learns_does(scaled, num_rows):
    config = IsolationForest(num_trees=20, num_rows_per_tree=num_rows, seed=3)
    ours = unlabelled.fit_here(config, scaled, NOBODY).native.predict(scaled)
    theirs = Isolating(n_estimators=20, max_samples=min(num_rows, len(scaled)), random_state=3).fit(
        scaled
    )
    np.testing.assert_allclose(ours, -theirs.score_samples(scaled), atol=1e-9)


def test_a_row_far_from_all_others_scores_highest(scaled):
    rows = np.concatenate([scaled, np.full((1, 6), 40, dtype=np.float32)])
    for config in (IsolationForest(num_trees=50), KMeans(num_clusters=3, num_starts=1)):
        others = unlabelled.fit_here(config, scaled, NOBODY).native
        assert others.predict(rows).argmax() == len(scaled)


def test_k_means_gives_the_distance_from_the_nearest_centre_and_how_good_the_clusters_are(scaled):
    config = KMeans(num_clusters=4, num_starts=2, silhouette_rows=300)
    fitted = unlabelled.fit_here(config, scaled, NOBODY)
    theirs = Clustering(n_clusters=4, n_init=2, random_state=0).fit(scaled.astype(float))
    nearest = theirs.transform(scaled.astype(float)).min(axis=1)
    np.testing.assert_allclose(fitted.native.predict(scaled), nearest, atol=1e-6)
    (quality,) = fitted.history
    assert -1 <= quality["silhouette"] <= 1
    assert quality["davies_bouldin"] > 0


def test_well_parted_clusters_have_a_silhouette_near_one():
    rows = np.repeat(np.array([[0, 0], [90, 0], [0, 90]], dtype=np.float32), 50, axis=0)
    rows += np.random.default_rng(0).normal(0, 0.1, rows.shape).astype(np.float32)
    (quality,) = unlabelled.fit_here(KMeans(num_clusters=3), rows, NOBODY).history
    assert quality["silhouette"] > 0.99
    assert quality["davies_bouldin"] < 0.01


def test_more_clusters_than_different_rows_are_refused():
    rows = np.repeat(np.array([[0.0], [1.0]], dtype=np.float32), 9, axis=0)
    with pytest.raises(TrainingDataError, match="fewer different rows than the 3 clusters"):
        unlabelled.fit_here(KMeans(num_clusters=3), rows, NOBODY)
