"""How a use case declares nets; their training stands in estimators/torch_*.py."""

from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from penstock.records import Declaration
from penstock.training.estimator_base import DistributedEstimator, ImportPath

Precision = Literal["float32", "tf32", "bfloat16", "float16"]
"""What a net computes in; its weights are float32 always. tf32: float32 with the matrix products
of a GPU rounded to TF32, on a CPU the same as float32. float16 comes with loss scaling."""


class Stage(Declaration):
    """Other values from an epoch on; what is left out stays as it was."""

    from_epoch: int = Field(ge=1)
    """After so many epochs."""
    learning_rate: float | None = Field(default=None, gt=0)
    weight_decay: float | None = Field(default=None, ge=0)
    max_gradient_norm: float | None = Field(default=None, gt=0)


STAGED = tuple(name for name in Stage.model_fields if name != "from_epoch")
"""What may change while a net trains."""


class EarlyStopping(Declaration):
    """Ends training when the newest rows, which it does not train on, are predicted no better."""

    patience_epochs: int = Field(default=3, ge=1)
    """Epochs without a better validation loss after which it ends; the best one's weights stay."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training rows, the newest ones, that is held out. Older rows whose label was
    not known by then train nothing either."""


class _TorchTraining(DistributedEstimator):
    num_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Rows of one optimiser step, all workers together."""
    accumulation_steps: int = Field(default=1, ge=1)
    """Parts in which a worker's rows of a step go through the net: less memory, the same step."""
    min_workers: int | None = Field(default=None, ge=1)
    """Elastic: so many workers suffice to start and to go on after a loss, and others join as room
    comes free, up to num_workers; None: always num_workers."""
    optimizer: Literal["adam", "adamw"] = "adam"
    learning_rate: float = Field(default=1e-3, gt=0)
    """Where the optimiser starts, or the top of its warm-up."""
    schedule: Literal["cosine", "warmup_cosine", "constant"] = "cosine"
    """How the learning rate goes on: to zero along half a cosine; the same after it has risen from
    zero; or as it is."""
    warmup_share: float | None = Field(default=None, gt=0, lt=1)
    """Share of all steps in which it rises: with warmup_cosine, and only there."""
    weight_decay: float = Field(default=0.0, ge=0)
    """A penalty on the weights: in adam a part of the gradient, in adamw apart from it."""
    max_gradient_norm: float | None = Field(default=None, gt=0)
    """A longer gradient is shortened to this length."""
    stages: tuple[Stage, ...] = ()
    """Values that change on the way, as `penstock tune --population` finds them."""
    precision: Precision = "float32"
    compile: bool = False
    """The net is compiled by torch.compile: a minute once, then faster steps on a GPU."""
    sharding: Literal["ddp", "fsdp2"] = "ddp"
    """Each worker holds the whole net, or its share of every layer, for nets beyond one device."""
    early_stopping: EarlyStopping | None = None
    positive_weight: Annotated[float, Field(gt=0)] | Literal["balanced"] | None = None
    """What a positive row weighs in the loss; balanced: as many times as negatives outnumber them.
    Scores are then no longer the share of positives to expect."""
    focal_gamma: float | None = Field(default=None, gt=0)
    """Turns the log loss into the focal loss: a row that is already predicted well weighs less,
    the more so the larger this is; 2 is usual."""
    sampling: Literal["as_they_come", "balanced"] = "as_they_come"
    """What an epoch goes through: each row once, or as many rows drawn with replacement, half of
    them positive."""
    checkpoint_every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between two checkpoints; None: one after each epoch."""

    @property
    def fewest_workers(self) -> int:
        """How many workers it takes to start, and to go on when one is lost."""
        return self.min_workers or self.num_workers

    @model_validator(mode="after")
    def _check_classes(self) -> Self:
        for name in ("positive_weight", "focal_gamma"):
            if self.loss != "log_loss" and getattr(self, name) is not None:
                raise ValueError(f"{name} is for two classes, and {self.loss} for a number")
        if self.sampling == "balanced":
            if self.loss != "log_loss":
                raise ValueError(f"balanced sampling is for two classes, {self.loss} for a number")
            if self.positive_weight is not None:
                raise ValueError(
                    "positive_weight and balanced sampling make up for the same thing twice: "
                    "leave one of them out"
                )
        return self

    @model_validator(mode="after")
    def _check_stages(self) -> Self:
        begins = [stage.from_epoch for stage in self.stages]
        if begins != sorted(set(begins)):
            raise ValueError(f"stages begin one after the other, these after epochs {begins}")
        if begins and begins[-1] >= self.num_epochs:
            raise ValueError(
                f"a stage begins after {begins[-1]} epochs, and there are {self.num_epochs}"
            )
        return self

    @model_validator(mode="after")
    def _check_steps(self) -> Self:
        if (self.schedule == "warmup_cosine") != (self.warmup_share is not None):
            raise ValueError(
                f"warmup_share belongs to the schedule 'warmup_cosine', and it to no other: "
                f"schedule is {self.schedule!r}, warmup_share is {self.warmup_share}"
            )
        num_parts = self.accumulation_steps * self.num_workers
        if self.accumulation_steps > 1 and num_parts > self.batch_size:
            raise ValueError(
                f"a batch of {self.batch_size} rows cannot go in {self.accumulation_steps} parts "
                f"on each of {self.num_workers} workers"
            )
        return self

    @model_validator(mode="after")
    def _check_workers(self) -> Self:
        if self.min_workers is not None and self.min_workers > self.num_workers:
            raise ValueError(
                f"min_workers is {self.min_workers}, and num_workers, the most there may be, "
                f"is {self.num_workers}"
            )
        if self.sharding == "fsdp2" and self.num_workers == 1:
            raise ValueError("fsdp2 shares a net out over workers, and num_workers is 1")
        if self.use_gpu is False and self.precision in ("tf32", "float16"):
            raise ValueError(
                f"{self.precision} is for GPUs, and use_gpu is False: bfloat16 or float32"
            )
        return self


class TorchMLP(_TorchTraining):
    """A feed-forward net: linear layers with ReLU between."""

    kind: Literal["torch_mlp"] = "torch_mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TorchModule(_TorchTraining):
    """A torch module of the user's own, named by its import path.

    The class is called with the number of features and the options; its forward takes float32
    [n, F] and gives logits, [n] or [n, 1]; for a number its output is taken in standard deviations
    from the mean of the training labels.
    """

    kind: Literal["torch_module"] = "torch_module"
    module: ImportPath
    """`package.module:ClassName`, importable from the feature repo or the environment."""
    options: Mapping[str, int | float | str | bool] = {}
    """Keyword arguments of the class."""


TorchConfig = TorchMLP | TorchModule
