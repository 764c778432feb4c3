"""Makes a net from its declaration: our own feed-forward net, or a module of the user's."""

import importlib
import sys
from pathlib import Path

import torch
from torch import nn

from penstock.errors import DeclarationError
from penstock.training.torch_declarations import TorchConfig, TorchMLP, TorchModule


def build(config: TorchConfig, *, num_features: int) -> nn.Module:
    """Make the net, with the weights that the seed gives.

    Raises:
        DeclarationError: the module cannot be imported, or does not fit.
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
    module_name, _, class_name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise DeclarationError(
            f"the torch module {path!r} cannot be imported: {error}",
            allowed="package.module:ClassName, importable from the feature repo",
        ) from error
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise DeclarationError(f"{path!r} is no torch.nn.Module", allowed="a subclass of it")
    try:
        net = found(num_features, **config.options)
    except TypeError as error:
        raise DeclarationError(
            f"{path!r} does not take what model.py gives it: {error}",
            allowed=f"{class_name}(num_features, **options), with the options of the declaration",
        ) from error
    with torch.no_grad():
        shape = tuple(net.eval()(torch.zeros(2, num_features)).shape)
    if shape not in {(2,), (2, 1)}:
        raise DeclarationError(
            f"{path!r} gives the shape {shape} for 2 rows", allowed="logits, [n] or [n, 1]"
        )
    return net


def extend_path(folders: tuple[str, ...]) -> None:
    """Let a module of the user's be imported from the folders."""
    for folder in folders:
        # A relative folder is one of the job's working directory, which differs by node.
        absolute = str(Path(folder).resolve())
        if absolute not in sys.path and Path(absolute).is_dir():
            sys.path.insert(0, absolute)
