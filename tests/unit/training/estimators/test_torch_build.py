"""Nets are made from their declaration, and what does not fit is refused before training."""

import sys

import pytest
import torch

from penstock.errors import DeclarationError
from penstock.training.declarations import TorchMLP, TorchModule
from penstock.training.estimators.torch_build import build

NETS = """
import torch

not_a_net = 3

class TwoLogits(torch.nn.Linear):
    def __init__(self, num_features):
        super().__init__(num_features, 2)

class Wide(torch.nn.Sequential):
    def __init__(self, num_features, width=1, bias=True):
        super().__init__(torch.nn.Linear(num_features, width, bias), torch.nn.Linear(width, 1))
"""


@pytest.fixture
def users_nets(tmp_path, monkeypatch):
    (tmp_path / "reservoir_shapes.py").write_text(NETS)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("reservoir_shapes", None)


def test_the_seed_gives_the_weights():
    def weights(seed):
        net = build(TorchMLP(seed=seed), num_features=4)
        return torch.cat([value.reshape(-1) for value in net.parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_a_module_of_the_users_gets_its_options(users_nets):
    config = TorchModule(module="reservoir_shapes:Wide", options={"width": 7, "bias": False})
    net = build(config, num_features=4)
    assert net[0].weight.shape == (7, 4)
    assert net[0].bias is None


@pytest.mark.parametrize(
    ("path", "options", "words"),
    [
        ("reservoir_shapes:Absent", {}, "cannot be imported"),
        ("reservoir_absent:Net", {}, "cannot be imported"),
        ("reservoir_shapes:not_a_net", {}, "is no torch.nn.Module"),
        ("reservoir_shapes:TwoLogits", {}, r"gives the shape \(2, 2\)"),
        ("reservoir_shapes:Wide", {"width": "3"}, "does not take what model.py gives it"),
    ],
)
def test_a_module_that_does_not_fit_is_refused_before_training(users_nets, path, options, words):
    with pytest.raises(DeclarationError, match=words):
        build(TorchModule(module=path, options=options), num_features=4)
