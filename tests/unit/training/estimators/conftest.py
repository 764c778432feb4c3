"""What the tests of several families train on."""

import numpy as np
import pytest


@pytest.fixture(scope="module")
def rows(synthetic):
    """Rows as an estimator meets them, float32 without gaps, and their labels."""
    features, labels = synthetic
    return np.nan_to_num(features).astype(np.float32), labels
