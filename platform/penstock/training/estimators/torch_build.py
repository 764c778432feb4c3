"""Makes a net from its declaration: our own feed-forward net, or a module of the user's."""

import torch
from torch import nn

from penstock.errors import DeclarationError
from penstock.training.estimators.own_classes import call_with_options, import_named
from penstock.training.torch_declarations import TorchConfig, TorchMLP, TorchModule


def build(config: TorchConfig, *, num_features: int) -> nn.Module:
    """Make the net, with the weights that the seed gives.

    Raises:
        DeclarationError: the module cannot be imported, or does not fit.
        NotFoundError: it has no such option.
    """
    torch.manual_seed(config.seed)
    match config:
        case TorchMLP():
            layers: list[nn.Module] = []
            width = num_features
            for hidden in config.hidden_sizes:
                layers += [nn.Linear(width, hidden), nn.ReLU(), nn.Dropout(config.dropout)]
                width = hidden
            return nn.Sequential(*layers, nn.Linear(width, 1))
        case TorchModule():
            return _import_net(config, num_features=num_features)


def _import_net(config: TorchModule, *, num_features: int) -> nn.Module:
    path = config.module
    found = import_named(path, what="torch module")
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise DeclarationError(f"{path!r} is no torch.nn.Module", allowed="a subclass of it")
    net: nn.Module = call_with_options(found, config.options, num_features, path=path)
    with torch.no_grad():
        shape = tuple(net.eval()(torch.zeros(2, num_features)).shape)
    if shape not in {(2,), (2, 1)}:
        raise DeclarationError(
            f"{path!r} gives the shape {shape} for 2 rows", allowed="logits, [n] or [n, 1]"
        )
    return net
