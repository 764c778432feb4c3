"""Fits of nets in one process: what they leave, and what they refuse."""

import numpy as np
import pytest

from penstock.errors import TrainingDataError
from penstock.training.declarations import TorchMLP
from penstock.training.estimators import torch_nets
from penstock.training.estimators.base import FitJob
from penstock.training.torch_declarations import EarlyStopping

JOB = FitJob(name="fit", checkpoints=None)


@pytest.fixture(autouse=True)
def unexported(monkeypatch):
    """Leaves the graph out, which takes seconds; test_bundle.py is about it."""
    monkeypatch.setattr(torch_nets, "export", lambda *_, **__: b"")


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    scaled = rng.normal(size=(200, 3)).astype(np.float32)
    return scaled, (scaled[:, 0] > 1).astype(np.int8)


def test_it_learns_and_says_where_the_rows_lay(rows):
    scaled, labels = rows
    fitted = torch_nets.fit_here(TorchMLP(num_epochs=30, learning_rate=0.01), scaled, labels, JOB)
    scores = fitted.native.predict(scaled)
    assert scores[labels == 1].min() > scores[labels == 0].mean()
    assert fitted.facts["rows_lie"] == "on the device"
    assert "200 rows x 3 features" in fitted.facts["rows_lie_there_as"]


def test_held_out_rows_train_nothing(rows):
    scaled, labels = rows
    config = TorchMLP(num_epochs=2, early_stopping=EarlyStopping(validation_share=0.25))
    fitted = torch_nets.fit_here(config, scaled, labels, JOB)
    assert {"train_loss", "validation_loss"} <= set(fitted.history[0])
    told = fitted.facts["rows_lie_there_as"]
    assert told.startswith("150 rows")
    changed = scaled.copy()
    changed[150:] = 0
    other = torch_nets.fit_here(config, changed, labels, JOB)
    losses = [[epoch["train_loss"] for epoch in each.history] for each in (fitted, other)]
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_is_the_users_mistake_and_names_the_batch(rows):
    scaled, labels = rows
    scaled[23] = np.inf
    config = TorchMLP(num_epochs=2, batch_size=64)
    with pytest.raises(
        TrainingDataError, match=r"epoch 1, batch \d of 4, at training row 23"
    ) as no:
        torch_nets.fit_here(config, scaled, labels, JOB)
    assert no.value.exit_code == 2


def test_numbers_come_back_in_their_own_size(rows):
    scaled, _ = rows
    labels = 1e6 + 100 * scaled[:, 0].astype(np.float64)
    config = TorchMLP(loss="squared_error", num_epochs=40, learning_rate=0.02)
    predicted = torch_nets.fit_here(config, scaled, labels, JOB).native.predict(scaled)
    assert np.abs(predicted - labels).mean() < 20
