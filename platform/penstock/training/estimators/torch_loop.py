"""Trains a net: the same loop on one worker or many, with Ray or without.

Needs torch and numpy alone. What it stands on is handed to it: rows, and a journal that hears how
far it is and gives back where it was. A run that goes on from a checkpoint takes the very steps
that an undisturbed one takes.
"""

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from penstock.training.estimators.torch_checkpoints import (
    Journal,
    read_parts,
    seed_everything,
    write_part,
)
from penstock.training.estimators.torch_rows import Batch, Rows, Seat
from penstock.training.estimators.torch_sharding import Weights, spread
from penstock.training.estimators.torch_steps import (
    allow_tf32,
    autocast,
    learning_rate_at,
    make_optimizer,
    make_scaler,
    plain_loss,
    set_for_next_step,
    stage_at,
    training_loss,
)

if TYPE_CHECKING:
    from penstock.training.torch_declarations import TorchConfig

TRAIN_LOSS = "train_loss"
VALIDATION_LOSS = "validation_loss"
# A look at a loss waits for the device: on a CPU that costs nothing, on a GPU it stops the queue.
_STEPS_PER_LOOK = {"cpu": 1}
_STEPS_PER_LOOK_ELSEWHERE = 50
_VALIDATION_ROWS_AT_ONCE = 65_536


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """The first batch whose loss was not a finite number."""

    epoch: int
    """From 1."""
    batch: int
    """From 1, in its epoch."""
    num_batches: int
    row: int | None
    """The first training row, from 0, whose own loss was not finite while others' were."""


@dataclass(kw_only=True)
class Outcome:
    """What training leaves."""

    history: list[dict[str, float]]
    """Metrics by epoch."""
    weights: Weights = field(default_factory=dict)
    """The net's, whole, on the first worker at least."""
    divergence: Divergence | None = None
    """Why it ended before its time, with no weights."""


def train(
    net: nn.Module,
    config: "TorchConfig",
    rows: Rows,
    *,
    journal: Journal,
    seat: Seat,
    weight: float | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
) -> Outcome:
    """Train the net, from the journal's last checkpoint on where it has one.

    Args:
        net: with the weights to begin with, the same on every worker.
        config: the declaration; any object with its fields will do.
        rows: what to train on.
        journal: hears of each epoch and keeps checkpoints.
        seat: this worker's place. Of several, torch.distributed must be up.
        weight: what a positive row weighs in the loss; None: what all do.
        validation: inputs [n, F] and targets [n] that early stopping looks at.
    """
    return _Training(net, config, rows, journal, seat, weight, validation).run()


def best_epoch(history: list[dict[str, float]]) -> int:
    """Give the first epoch, from 0, of the smallest validation loss."""
    losses = [epoch[VALIDATION_LOSS] for epoch in history]
    return losses.index(min(losses))


def is_over(history: list[dict[str, float]], *, patience_epochs: int) -> bool:
    """Say whether the last epochs were no better than one before them."""
    return bool(history) and len(history) - 1 - best_epoch(history) >= patience_epochs


class _Training:
    def __init__(
        self,
        net: nn.Module,
        config: "TorchConfig",
        rows: Rows,
        journal: Journal,
        seat: Seat,
        weight: float | None,
        validation: tuple[Tensor, Tensor] | None,
    ) -> None:
        self._config = config
        self._rows = rows
        self._journal = journal
        self._seat = seat
        self._validation = validation
        allow_tf32(config)
        self._spread = spread(net, config, seat)
        self._net = net
        self._optimizer = make_optimizer(config, net.parameters())
        self._scaler = make_scaler(config, seat.device)
        self._loss = training_loss(config, weight)
        self._plain_loss = plain_loss(config)
        self._steps_per_look = _STEPS_PER_LOOK.get(seat.device.type, _STEPS_PER_LOOK_ELSEWHERE)
        self._num_steps = config.num_epochs * rows.num_steps
        self._stage = stage_at(config, 0)
        # Where it is: what a checkpoint holds, beside weights, optimiser and random states.
        self._history: list[dict[str, float]] = []
        self._step = 0
        self._total = 0.0
        self._best: Weights | None = None
        self._unlooked: list[Tensor] = []

    def run(self) -> Outcome:
        with self._journal.latest() as folder:
            if folder is not None:
                self._resume(folder)
        stopping = self._config.early_stopping
        while len(self._history) < self._config.num_epochs:
            if stopping and is_over(self._history, patience_epochs=stopping.patience_epochs):
                break
            divergence = self._train_epoch() or self._end_epoch()
            if divergence is not None:
                return Outcome(history=self._history, divergence=divergence)
        weights = self._best if self._best is not None else self._spread.weights()
        return Outcome(history=self._history, weights=weights)

    def _train_epoch(self) -> Divergence | None:
        epoch = len(self._history)
        if self._step == 0:
            self._seed(epoch)
        self._stage = stage_at(self._config, epoch)
        self._spread.model.train()
        for batch in self._rows.batches(epoch, self._step):
            step = epoch * self._rows.num_steps + self._step
            set_for_next_step(
                self._optimizer,
                learning_rate=self._learning_rate_at(step),
                weight_decay=self._stage.weight_decay,
            )
            self._unlooked.append(self._gradients(batch))
            self._step += 1
            is_due = self._is_due(step + 1) and self._step < self._rows.num_steps
            # Before the step is taken: on a CPU a batch that is no good does no harm.
            if is_due or self._step % self._steps_per_look == 0:
                divergence = self._look(batch)
                if divergence is not None:
                    return divergence
            self._take_step()
            if is_due:
                self._journal.report(self._progress(step + 1), self._checkpoint())
        return self._look(None)

    def _gradients(self, batch: Batch) -> Tensor:
        """Compute the batch's gradients; give its summed loss over all workers, float64."""
        self._optimizer.zero_grad(set_to_none=True)
        world = self._seat.world
        total = torch.zeros((), dtype=torch.float64, device=self._seat.device)
        num_parts = self._config.accumulation_steps
        parts = zip(
            batch.inputs.tensor_split(num_parts), batch.targets.tensor_split(num_parts), strict=True
        )
        told: Any = None
        for number, (inputs, targets) in enumerate(parts, start=1):
            with ExitStack() as parting:
                parting.enter_context(self._spread.gathering(is_last=number == num_parts))
                with self._autocast():
                    outputs = self._spread.model(inputs).reshape(-1)
                summed = self._loss(outputs, targets).sum()
                total += summed.detach()
                if number == num_parts and world > 1:
                    # Told while the gradients are computed, it costs no waiting of its own.
                    told = torch.distributed.all_reduce(total, async_op=True)
                # Workers take the mean of their gradients; this makes it the mean over the
                # batch's rows, however unevenly they are shared out.
                self._scaler.scale(summed * world / batch.num_rows).backward()  # type: ignore[no-untyped-call]  # torch left it so
        if told is not None:
            told.wait()
        return total

    def _take_step(self) -> None:
        if self._stage.max_gradient_norm is not None:
            self._scaler.unscale_(self._optimizer)
            nn.utils.clip_grad_norm_(self._net.parameters(), self._stage.max_gradient_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def _look(self, batch: Batch | None) -> Divergence | None:
        """Add up the losses since the last look, the same on all workers."""
        if not self._unlooked:
            return None
        losses = torch.stack(self._unlooked).tolist()
        self._unlooked.clear()
        for place, loss in enumerate(losses):
            if not math.isfinite(loss):
                step = self._step - len(losses) + place
                return Divergence(
                    epoch=len(self._history) + 1,
                    batch=step + 1,
                    num_batches=self._rows.num_steps,
                    # Later than at once, the weights themselves are no good any more.
                    row=self._first_bad_row(batch, step) if batch and len(losses) == 1 else None,
                )
            self._total += loss
        return None

    def _first_bad_row(self, batch: Batch, step: int) -> int | None:
        none = torch.iinfo(torch.int64).max
        first = torch.tensor([none, 1], device=self._seat.device)
        numbers = self._rows.numbers(len(self._history), step)
        with torch.no_grad(), self._autocast():
            losses = self._loss(self._spread.model(batch.inputs).reshape(-1), batch.targets)
        finite = losses.isfinite()
        if numbers is not None and not finite.all():
            first[0] = numbers[~finite.cpu()].min()
        first[1] = int(not finite.any())
        if self._seat.world > 1:
            torch.distributed.all_reduce(first, op=torch.distributed.ReduceOp.MIN)
        row, all_bad = first.tolist()
        return None if all_bad or row == none else int(row)

    def _end_epoch(self) -> Divergence | None:
        epoch = len(self._history)
        done = (epoch + 1) * self._rows.num_steps
        entry = self._progress(done)
        if self._validation is not None:
            entry[VALIDATION_LOSS] = self._validation_loss(*self._validation)
            if not math.isfinite(entry[VALIDATION_LOSS]):
                num_batches = self._rows.num_steps
                return Divergence(
                    epoch=epoch + 1, batch=num_batches, num_batches=num_batches, row=None
                )
        self._history.append(entry)
        self._step, self._total = 0, 0.0
        if self._validation is not None and best_epoch(self._history) == epoch:
            # A copy: what is there on a CPU are the weights themselves, which go on.
            self._best = {name: value.clone() for name, value in self._spread.weights().items()}
        is_due = self._config.checkpoint_every_steps is None or self._is_due(done)
        self._journal.report(entry, self._checkpoint() if is_due else None)
        return None

    def _progress(self, done: int) -> dict[str, float]:
        num_rows = min(self._step * self._rows.batch_size, self._rows.num_rows)
        return {
            TRAIN_LOSS: self._total / num_rows,
            "learning_rate": self._learning_rate_at(done),
        }

    def _learning_rate_at(self, step: int) -> float:
        top = self._stage.learning_rate
        return learning_rate_at(self._config, step, self._num_steps, top=top)

    def _validation_loss(self, inputs: Tensor, targets: Tensor) -> float:
        """Give the mean loss over the rows, every one weighing the same."""
        rank, world = self._seat.rank, self._seat.world
        self._spread.model.eval()
        total = torch.zeros((), dtype=torch.float64, device=self._seat.device)
        with torch.no_grad(), self._autocast():
            for start in range(0, len(inputs), _VALIDATION_ROWS_AT_ONCE):
                own = slice(start + rank, start + _VALIDATION_ROWS_AT_ONCE, world)
                outputs = self._spread.model(inputs[own].to(self._seat.device)).reshape(-1)
                total += self._plain_loss(outputs, targets[own].to(self._seat.device)).sum()
        if world > 1:
            torch.distributed.all_reduce(total)
        return float(total) / len(inputs)

    def _autocast(self) -> AbstractContextManager[Any]:
        return autocast(self._config, self._seat.device)

    def _is_due(self, done: int) -> bool:
        every = self._config.checkpoint_every_steps
        return every is not None and done % every == 0

    def _checkpoint(self) -> "_Part":
        return _Part(
            {
                "net": self._spread.weights(),
                "optimizer": self._spread.state(self._optimizer),
                "scaler": self._scaler.state_dict(),
                "history": self._history,
                "step": self._step,
                "total": self._total,
                "best": self._best,
            },
            self._seat,
        )

    def _seed(self, epoch: int) -> None:
        # Each epoch has its own seed, so that one begun after a restart is the same epoch.
        seed_everything(self._config.seed + 1_000_003 * (epoch + 1) + self._seat.rank)

    def _resume(self, folder: Path) -> None:
        # For a worker that comes new into the middle of an epoch.
        self._seed(0)
        state = read_parts(folder, self._seat)
        self._spread.take_weights(state["net"])
        self._spread.take_state(self._optimizer, state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        self._history = list(state["history"])
        self._step, self._total, self._best = state["step"], state["total"], state["best"]


@dataclass(frozen=True)
class _Part:
    """This worker's part of a checkpoint, ready to be written."""

    state: Mapping[str, Any]
    seat: Seat

    def __call__(self, folder: Path) -> None:
        write_part(folder, self.state, self.seat)
