import numpy as np
import pytest

from penstock.training.declarations import XGBoost
from penstock.training.estimators import xgboost_trees


def grown(num_rows: int = 3000) -> tuple[list[str], list[float]]:
    random = np.random.default_rng(0)
    scaled = random.normal(size=(num_rows, 4)).astype(np.float32)
    labels = (scaled[:, 0] + random.normal(size=num_rows) > 0).astype(np.int8)
    fitted = xgboost_trees.FAMILY.fit_here(XGBoost(num_rounds=15), scaled, labels)
    losses = [round_["train_loss"] for round_ in fitted.history]
    return fitted.native.booster.get_dump(), losses


def test_a_loss_that_is_measured_on_some_rows_changes_no_tree(monkeypatch):
    trees, losses = grown()
    monkeypatch.setattr(xgboost_trees, "MEASURED_ROWS", 1000)
    same_trees, other_losses = grown()
    assert trees == same_trees
    assert losses != other_losses
    assert losses == pytest.approx(other_losses, rel=0.1)
