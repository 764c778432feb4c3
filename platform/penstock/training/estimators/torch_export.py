"""Nets as they are kept and served: weights without pickle, and the graph."""

import logging
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import orjson
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penstock.training.estimators.base import INPUT, OUTPUT, Scaled, Scores
from penstock.training.estimators.torch_build import build
from penstock.training.torch_declarations import TorchConfig

_CONFIG: TypeAdapter[TorchConfig] = TypeAdapter(TorchConfig)
_CONFIG_FILE = "net.json"
_WEIGHTS_FILE = "net.safetensors"
_ROWS_AT_ONCE = 65_536


class _Scorer(nn.Module):
    """Turns a net's outputs into the graph's one output."""

    def __init__(self, native: "TorchNet") -> None:
        super().__init__()
        self.net = native.net
        self.is_binary = native.config.task == "binary"
        self.center, self.spread = native.center, native.spread

    def forward(self, scaled: Tensor) -> Tensor:
        outputs: Tensor = self.net(scaled).reshape(-1)
        return torch.sigmoid(outputs) if self.is_binary else outputs * self.spread + self.center


def export(native: "TorchNet") -> bytes:
    """Give the net's graph, from float32 [n, F] to the score."""
    example = torch.zeros(3, native.num_features)
    # The exporter remarks that torchvision, which nobody asked for, is absent.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # torch 2.13's exporter uses what torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        program = torch.onnx.export(
            _Scorer(native).eval(),
            (example,),
            dynamo=True,
            verbose=False,
            input_names=[INPUT],
            output_names=[OUTPUT],
            dynamic_shapes=({0: torch.export.Dim("n")},),
        )
    if program is None:
        raise TypeError("torch.onnx.export gave no program")
    serialised: bytes = program.model_proto.SerializeToString()
    return serialised


@dataclass(frozen=True, kw_only=True)
class TorchNet:
    """A net and the declaration that builds it; its weights are stored as safetensors."""

    family: ClassVar[str] = "torch"
    net: nn.Module
    config: TorchConfig
    num_features: int
    center: float = 0.0
    spread: float = 1.0
    """For a number as label: score = output * spread + center."""

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        score = _Scorer(self).eval()
        parts = [np.empty(0)]
        with torch.inference_mode():
            for start in range(0, len(scaled), _ROWS_AT_ONCE):
                rows = torch.from_numpy(np.array(scaled[start : start + _ROWS_AT_ONCE]))
                parts.append(score(rows).double().numpy())
        return np.concatenate(parts)

    def save(self, folder: Path) -> None:
        """Write net.json and net.safetensors."""
        parts: Mapping[str, Any] = {
            "config": self.config.model_dump(mode="json"),
            "num_features": self.num_features,
            "center": self.center,
            "spread": self.spread,
        }
        (folder / _CONFIG_FILE).write_bytes(orjson.dumps(parts))
        weights = {name: value.contiguous() for name, value in self.net.state_dict().items()}
        save_file(weights, folder / _WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read net.json and net.safetensors.

        A user's own module is imported by its path: its code comes from the environment or the
        feature repo, never from the folder.
        """
        parts = orjson.loads((folder / _CONFIG_FILE).read_bytes())
        config = _CONFIG.validate_python(parts["config"])
        net = build(config, num_features=parts["num_features"])
        net.load_state_dict(load_file(folder / _WEIGHTS_FILE))
        return cls(
            net=net,
            config=config,
            num_features=parts["num_features"],
            center=parts.get("center", 0.0),
            spread=parts.get("spread", 1.0),
        )
