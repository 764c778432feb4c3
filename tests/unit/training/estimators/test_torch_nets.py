"""Nets: what may be declared, and that batches are shared out whole."""

import sys

import pytest
import torch

from penstock.errors import DeclarationError
from penstock.training.declarations import TorchMLP, TorchModule
from penstock.training.estimators import torch_nets

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
