"""What one optimiser step is made of: loss, learning rate, optimiser, precision.

Needs torch alone, so that a net trains on a machine that has nothing else of ours.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from penstock.training.estimators.class_weight import balancing_weight

if TYPE_CHECKING:
    from penstock.training.torch_declarations import TorchConfig

RowLoss = Callable[[Tensor, Tensor], Tensor]
"""From outputs [n] and targets [n] to the loss of each row [n]."""

_LOSSES: Mapping[str, Callable[..., Tensor]] = {
    "log_loss": nn.functional.binary_cross_entropy_with_logits,
    "squared_error": nn.functional.mse_loss,
    "absolute_error": nn.functional.l1_loss,
}
# A power below 1 has no slope at 0 to go down.
_LEAST = 1e-12
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def plain_loss(config: "TorchConfig") -> RowLoss:
    """Give the declared loss, each row weighing the same: what a net is measured by."""
    loss = _LOSSES[config.loss]

    def rows(outputs: Tensor, targets: Tensor) -> Tensor:
        return loss(outputs.float(), targets, reduction="none")

    return rows


def training_loss(config: "TorchConfig", weight: float | None) -> RowLoss:
    """Give the declared loss with a positive row's weight: what training makes small.

    The focal loss is that of Lin et al., Focal Loss for Dense Object Detection, 2017.
    """
    plain, gamma = plain_loss(config), config.focal_gamma
    if weight is None and gamma is None:
        return plain

    def rows(outputs: Tensor, targets: Tensor) -> Tensor:
        each = plain(outputs, targets)
        # exp(-loss) is the probability that the row's own class was given.
        shaped = each if gamma is None else (-torch.expm1(-each)).clamp_min(_LEAST) ** gamma * each
        return shaped if weight is None else shaped * (1 + (weight - 1) * targets)

    return rows


def positive_weight(config: "TorchConfig", *, num_positives: int, num_rows: int) -> float | None:
    """Give what a positive row weighs; None: what all do.

    Raises:
        TrainingDataError: classes shall be balanced, and there is one class only.
    """
    balancing = None
    if "balanced" in (config.positive_weight, config.sampling):
        balancing = balancing_weight(num_positives=num_positives, num_rows=num_rows)
    return balancing if config.positive_weight == "balanced" else config.positive_weight


class StageValues(NamedTuple):
    """What holds in an epoch, of all that stages may change."""

    learning_rate: float
    weight_decay: float
    max_gradient_norm: float | None


def stage_at(config: "TorchConfig", epoch: int) -> StageValues:
    """Give what holds in an epoch, counted from 0."""
    values = StageValues(config.learning_rate, config.weight_decay, config.max_gradient_norm)
    for stage in config.stages:
        if stage.from_epoch <= epoch:
            given = {name: getattr(stage, name) for name in StageValues._fields}
            values = values._replace(**{k: v for k, v in given.items() if v is not None})
    return values


def learning_rate_at(
    config: "TorchConfig", step: int, num_steps: int, *, top: float | None = None
) -> float:
    """Give the learning rate of a step, counted from 0, out of all steps.

    `top` is what the stage says of it; None: what is declared.
    """
    top = config.learning_rate if top is None else top
    if config.schedule == "constant":
        return top
    num_warmup = math.ceil((config.warmup_share or 0.0) * num_steps)
    if step < num_warmup:
        return top * (step + 1) / num_warmup
    # A warm-up of all steps but none leaves nothing to come down in.
    done = (step - num_warmup) / max(num_steps - num_warmup, 1)
    return top * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(
    config: "TorchConfig", parameters: Iterable[nn.Parameter]
) -> torch.optim.Optimizer:
    """Make the declared optimiser."""
    chosen = torch.optim.Adam if config.optimizer == "adam" else torch.optim.AdamW
    return chosen(
        parameters,
        lr=config.learning_rate,
        weight_decay=config.weight_decay,
        # One kernel for all weights; a sharded net's tensors have no such kernel everywhere.
        fused=config.sharding == "ddp",
    )


def set_for_next_step(
    optimizer: torch.optim.Optimizer, *, learning_rate: float, weight_decay: float
) -> None:
    """Let the next step have these."""
    for group in optimizer.param_groups:
        group["lr"], group["weight_decay"] = learning_rate, weight_decay


def autocast(config: "TorchConfig", device: torch.device) -> torch.autocast:
    """Compute what is inside in the declared precision."""
    dtype = _AUTOCAST.get(config.precision)
    return torch.autocast(device.type, dtype=dtype, enabled=dtype is not None)


def make_scaler(config: "TorchConfig", device: torch.device) -> torch.amp.GradScaler:
    """Keep float16's small gradients above zero; does nothing in any other precision."""
    return torch.amp.GradScaler(device.type, enabled=config.precision == "float16")


def allow_tf32(config: "TorchConfig") -> None:
    """Let this process's matrix products on a GPU be rounded to TF32, or not, as declared."""
    # autocast's own products are in its type; what is left in float32 may be rounded beside it.
    exact = config.precision == "float32"
    torch.set_float32_matmul_precision("highest" if exact else "high")
