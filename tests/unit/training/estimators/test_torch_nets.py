"""Nets: what may be declared, and that batches are shared out whole."""

import math
import sys

import pytest
import torch

from penstock.errors import DeclarationError, TrainingDataError
from penstock.training.declarations import TorchMLP, TorchModule
from penstock.training.estimators import distributed, torch_nets

NETS = """
import torch

not_a_net = 3

class TwoLogits(torch.nn.Linear):
    def __init__(self, num_features):
        super().__init__(num_features, 2)
"""


@pytest.fixture
def users_nets(tmp_path, monkeypatch):
    (tmp_path / "reservoir_shapes.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("reservoir_shapes", None)


class TestBuild:
    def test_the_seed_gives_the_weights(self):
        def weights(seed):
            net = torch_nets.build(TorchMLP(seed=seed), num_features=4)
            return torch.cat([value.reshape(-1) for value in net.parameters()])

        assert torch.equal(weights(0), weights(0))
        assert not torch.equal(weights(0), weights(1))

    @pytest.mark.parametrize(
        ("path", "words"),
        [
            ("reservoir_shapes:Absent", "cannot be imported"),
            ("reservoir_absent:Net", "cannot be imported"),
            ("reservoir_shapes:not_a_net", "is no torch.nn.Module"),
            ("reservoir_shapes:TwoLogits", r"gives the shape \(2, 2\)"),
        ],
    )
    def test_a_module_that_does_not_fit_is_refused_before_training(self, users_nets, path, words):
        with pytest.raises(DeclarationError, match=words):
            torch_nets.build(TorchModule(module=path), num_features=4)


class TestDivergence:
    def test_a_loss_that_overflows_is_seen_after_its_epoch(self):
        config = TorchMLP(learning_rate=1e30, batch_size=8)
        net = torch_nets.build(config, num_features=3)
        optimizer = torch.optim.Adam(net.parameters(), lr=config.learning_rate)
        schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
        inputs, targets = torch.ones(64, 3), torch.tensor([0.0, 1.0] * 32)
        loss = torch_nets._train_epoch(
            net, optimizer, schedule, inputs, targets, config, 0, rank=0, world=1
        )
        assert not math.isfinite(loss)

    def test_it_is_the_users_mistake(self):
        with pytest.raises(TrainingDataError, match="not a finite number in epoch 3") as refused:
            distributed.refuse_divergence({distributed.DIVERGED: 3})
        assert refused.value.exit_code == 2

    def test_a_result_without_it_is_given_back(self):
        assert distributed.refuse_divergence({"model": b"x"}) == {"model": b"x"}


class TestBatches:
    def test_every_row_comes_once_an_epoch(self):
        batches = list(torch_nets._batches(10, 4, seed=0, epoch=0))
        assert [len(batch) for batch in batches] == [4, 4, 2]
        assert sorted(torch.cat(batches).tolist()) == list(range(10))

    def test_an_epoch_is_the_same_after_a_restart_and_differs_from_the_one_before(self):
        def order(epoch):
            return torch.cat(list(torch_nets._batches(50, 8, seed=0, epoch=epoch))).tolist()

        assert order(3) == order(3)
        assert order(3) != order(2)
