"""Fits on Ray Train's workers: several of them, and again after a loss."""

from types import SimpleNamespace

import numpy as np
import pytest
import ray
from ray.train.torch import TorchTrainer

from penstock.training.declarations import LightGBM, TorchMLP, XGBoost
from penstock.training.estimators import distributed, lightgbm_trees, torch_nets, xgboost_trees
from penstock.training.estimators.base import FitJob
from penstock.training.mapped_rows import make_mapped

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def rows(synthetic):
    features, labels = synthetic
    scaled = np.nan_to_num((features - np.nanmean(features, axis=0)) / np.nanstd(features, axis=0))
    return scaled.astype(np.float32), labels


@pytest.fixture
def unexported(monkeypatch):
    """Leaves the graphs out, which take as long as all epochs; test_bundle.py is about them."""
    for family in (torch_nets, xgboost_trees, lightgbm_trees):
        monkeypatch.setattr(family, "export", lambda *_, **__: b"")


@pytest.fixture
def job(tmp_path):
    return FitJob(name="fit", checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("declared", "num_gpus", "asked_for"),
    [(None, 0, False), (None, 1, False), (None, 2, True), (True, 0, True), (False, 2, False)],
)
def test_gpus_are_asked_for_as_declared_or_taken_where_there_are_enough(
    monkeypatch, job, declared, num_gpus, asked_for
):
    class Trainer:
        def __init__(self, _worker, *, train_loop_config, scaling_config, run_config):
            assert train_loop_config["use_gpu"] is scaling_config.use_gpu is asked_for
            assert ("GPU" in scaling_config.resources_per_worker) is asked_for

        def fit(self):
            return SimpleNamespace(return_value={"fitted": True})

    monkeypatch.setattr(ray, "put", lambda value: value)
    monkeypatch.setattr(ray, "nodes", lambda: [{}])
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": num_gpus})
    monkeypatch.setattr(distributed, "export_environment", lambda _: None)
    config = XGBoost(num_workers=2, use_gpu=declared)
    nothing = np.zeros((1, 1), np.float32)
    assert distributed.run(Trainer, print, config, nothing, nothing, job, extra={})["fitted"]


@pytest.mark.parametrize(
    ("kind", "trees"),
    [
        (XGBoost, xgboost_trees),
        pytest.param(LightGBM, lightgbm_trees, marks=pytest.mark.slow),
    ],
)
def test_trees_go_on_from_the_last_checkpoint_on_however_many_workers(
    connected, rows, job, unexported, kind, trees
):
    scaled, labels = rows
    half = kind(num_workers=2, num_rounds=25)
    first = trees.fit(half, scaled, labels, job)
    # Each worker is a process to start, which takes longer than its rounds: once is enough.
    whole = half.model_copy(update={"num_rounds": 40, "num_workers": 1})
    second = trees.fit(whole, scaled, labels, job)
    losses = [epoch["train_loss"] for epoch in second.history]
    assert len(losses) == 40
    # The first half was not fitted again: it is the very history of the first fit.
    assert second.history[:25] == first.history
    assert losses[-1] < losses[24] < losses[0]
    grown = second.native.booster
    assert (grown.num_boosted_rounds() if kind is XGBoost else grown.num_trees()) == 40


def test_an_elastic_training_asks_for_between_the_fewest_and_the_most_workers():
    assert distributed.num_workers(TorchMLP(num_workers=4, min_workers=2)) == (2, 4)
    assert distributed.num_workers(TorchMLP(num_workers=4)) == 4
    assert distributed.num_workers(XGBoost(num_workers=3)) == 3


def test_a_net_of_two_workers_that_map_a_file_takes_the_steps_of_one(
    connected, rows, job, unexported
):
    scaled, labels = rows
    config = TorchMLP(num_workers=2, num_epochs=2, batch_size=64, learning_rate=1e-2)
    mapped = make_mapped(job.checkpoints / "rows" / "scaled.npy", *scaled.shape, np.float32)
    mapped[:] = scaled
    shared = torch_nets.fit(config, mapped, labels, job)
    alone = torch_nets.fit_here(config, scaled, labels, job)
    losses = [[epoch["train_loss"] for epoch in fitted.history] for fitted in (shared, alone)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    np.testing.assert_allclose(
        shared.native.predict(scaled), alone.native.predict(scaled), atol=5e-3
    )


def test_a_fit_starts_no_process_that_serves_it_not():
    def callbacks(trainer):
        return {type(made).__name__ for made in trainer(print)._create_default_callbacks()}

    left_out = callbacks(TorchTrainer) - callbacks(distributed.with_fewer_processes(TorchTrainer))
    assert left_out == {"DatasetsCallback", "PlacementGroupCleanerCallback"}
