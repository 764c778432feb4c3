"""Small synthetic examples, and the published ones where they are."""

import sys

import numpy as np
import pytest

from published import card_fraud_model, published_examples

__all__ = ["card_fraud_model", "published_examples"]

FEATURES = tuple(f"f{i}" for i in range(6))


@pytest.fixture
def fresh_imports():
    """Forget what a test imported from a feature repo of its own."""
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        if name.startswith("reservoir"):
            del sys.modules[name]
    sys.path[:] = path


@pytest.fixture(scope="session")
def synthetic():
    """2,000 rows of 6 features of very different sizes, 12 % positive, 5 % missing."""
    rng = np.random.default_rng(7)
    raw = rng.normal(size=(2000, len(FEATURES)))
    logits = 1.5 * raw[:, 0] - raw[:, 1] + raw[:, 2] * raw[:, 3] - 2.5
    labels = (rng.random(2000) < 1 / (1 + np.exp(-logits))).astype(np.int8)
    features = raw * np.array([1, 1e-3, 50, 1e4, 1, 1]) + np.array([0, 0, 30, -7e5, 0, 1])
    # Whole numbers land exactly on the thresholds of trees, where rounding decides.
    features[:, 4] = np.round(features[:, 4] * 3)
    features[rng.random(features.shape) < 0.05] = np.nan
    return features, labels
