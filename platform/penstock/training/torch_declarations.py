"""How a use case declares nets; their training stands in estimators/torch_*.py."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.training.estimator_base import DistributedEstimator


class _TorchTraining(DistributedEstimator):
    num_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Rows of one optimiser step, all workers together."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Where Adam starts; it falls to zero along half a cosine."""


class TorchMLP(_TorchTraining):
    """A feed-forward net: linear layers with ReLU between, trained by Adam."""

    kind: Literal["torch_mlp"] = "torch_mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TorchModule(_TorchTraining):
    """A torch module of the user's own, named by its import path.

    The class is called with the number of features; its forward takes float32 [n, F] and gives
    logits, [n] or [n, 1]; for a number its output is taken in standard deviations from the mean
    of the training labels.
    """

    kind: Literal["torch_module"] = "torch_module"
    module: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:ClassName`, importable from the feature repo or the environment."""
