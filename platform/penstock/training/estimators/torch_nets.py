"""Fits nets: on Ray Train's workers, or in this process alone."""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import psutil
import torch
from torch import Tensor

from penstock.errors import TrainingDataError
from penstock.training.estimators.base import FitJob, Fitted, Labels, Scaled
from penstock.training.estimators.holdout import Holdout, hold_out
from penstock.training.estimators.own_classes import extend_path
from penstock.training.estimators.torch_build import build
from penstock.training.estimators.torch_checkpoints import FolderJournal, Forgetful, Journal
from penstock.training.estimators.torch_export import TorchNet, export
from penstock.training.estimators.torch_loop import Divergence, train
from penstock.training.estimators.torch_placement import Memory, place_rows
from penstock.training.estimators.torch_rows import Order, Seat, hold
from penstock.training.estimators.torch_steps import positive_weight
from penstock.training.mapped_rows import mapped_file
from penstock.training.torch_declarations import TorchConfig

_DIVERGED = "diverged"


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """What is the same for all workers, worked out once."""

    held_out: Holdout | None
    weight: float | None
    """What a positive row weighs."""


def fit(config: TorchConfig, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit on `config.num_workers` workers of Ray Train.

    Raises:
        DeclarationError: the module cannot be imported, or does not fit.
        TrainingDataError: the rows cannot be trained on, or the loss was not finite.
    """
    from ray.train.torch import TorchTrainer

    from penstock.training.estimators import distributed

    extend_path(job.import_folders)
    # A declaration that is wrong is refused here, before any worker starts.
    build(config, num_features=scaled.shape[1])
    plan = _plan(config, labels, job)
    returned = distributed.run(
        TorchTrainer,
        _worker,
        config,
        scaled,
        standardised(config, labels),
        job,
        extra={"import_folders": job.import_folders, "plan": plan},
    )
    refuse_divergence(returned, kept_in=job.checkpoints / job.name)
    return _fitted(config, scaled, labels, returned)


def fit_here(config: TorchConfig, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit in this process alone, whatever num_workers says, and without checkpoints.

    Raises:
        DeclarationError: the module cannot be imported, or does not fit.
        TrainingDataError: the rows cannot be trained on, or the loss was not finite.
    """
    return _fitted(config, scaled, labels, _trained_here(config, scaled, labels, job))


def fit_native(config: TorchConfig, scaled: Scaled, labels: Labels, job: FitJob) -> TorchNet:
    """Fit as `fit_here` does, to the net alone: whoever only wants scores pays for no graph."""
    return _native(config, scaled, labels, _trained_here(config, scaled, labels, job))


def _trained_here(
    config: TorchConfig, scaled: Scaled, labels: Labels, job: FitJob
) -> dict[str, Any]:
    extend_path(job.import_folders)
    num_threads = torch.get_num_threads()
    try:
        returned = _train(
            # One worker has nobody to share a net out with.
            config.model_copy(update={"sharding": "ddp"}),
            scaled,
            standardised(config, labels),
            _plan(config, labels, job),
            journal=_journal(job),
            seat=Seat(),
            workers_on_node=1,
        )
    finally:
        torch.set_num_threads(num_threads)
    refuse_divergence(returned, kept_in=None)
    return returned


def _journal(job: FitJob) -> Journal:
    if job.keep_in is None:
        return Forgetful()
    return FolderJournal(job.keep_in, Seat(), begin_from=job.begin_from)


def standardised(config: TorchConfig, labels: Labels) -> npt.NDArray[np.float64]:
    """Give the labels as the net's outputs are."""
    center, spread = standard(config, labels)
    return (labels.astype(np.float64) - center) / spread


def standard(config: TorchConfig, labels: Labels) -> tuple[float, float]:
    """The mean and deviation that the net's outputs are in: a net learns small numbers well."""
    if config.task == "binary":
        return 0.0, 1.0
    return float(labels.mean()), float(labels.std()) or 1.0


def refuse_divergence(returned: Mapping[str, Any], *, kept_in: Path | None) -> None:
    """Refuse what a worker returned if it says that its loss was not finite.

    A worker says so rather than raises: a raised error counts as a lost worker, and the same data
    would be tried again to the same end.

    Raises:
        TrainingDataError: the loss was not finite.
    """
    found: Divergence | None = returned.get(_DIVERGED)
    if found is None:
        return
    row = f", at training row {found.row:,} (from 0)" if found.row is not None else ""
    kept = f"; the last good checkpoint is kept in {kept_in}" if kept_in else ""
    raise TrainingDataError(
        f"the loss was not a finite number in epoch {found.epoch}, batch {found.batch:,} of "
        f"{found.num_batches:,}{row}",
        next_step=f"lower learning_rate in model.py, or look for extreme feature values{kept}",
    )


def _plan(config: TorchConfig, labels: Labels, job: FitJob) -> _Plan:
    held_out = None
    if config.early_stopping is not None:
        held_out = hold_out(
            len(labels),
            config.early_stopping.validation_share,
            event_times=job.event_times,
            label_delay=job.label_delay,
        )
    training = labels[: held_out.num_training_rows] if held_out else labels
    is_binary = config.task == "binary"
    num_positives = int(training.sum()) if is_binary else 0
    weight = positive_weight(config, num_positives=num_positives, num_rows=len(training))
    return _Plan(held_out=held_out, weight=weight)


def _worker(parts: dict[str, Any]) -> dict[str, Any]:
    import ray
    import ray.train.torch

    from penstock.training.estimators import distributed
    from penstock.training.estimators.ray_journal import RayJournal

    extend_path(parts["import_folders"])
    rank, world = distributed.share()
    scaled, labels = distributed.rows_of(parts)
    return _train(
        parts["config"],
        scaled,
        labels,
        parts["plan"],
        journal=RayJournal(),
        seat=Seat(rank=rank, world=world, device=ray.train.torch.get_device()),
        workers_on_node=ray.train.get_context().get_local_world_size(),
    )


def _train(
    config: TorchConfig,
    scaled: Scaled,
    labels: Labels,
    plan: _Plan,
    *,
    journal: Journal,
    seat: Seat,
    workers_on_node: int,
) -> dict[str, Any]:
    torch.set_num_threads(config.num_cpus_per_worker)
    inputs, targets = _tensor(scaled), _tensor(labels.astype(np.float32))
    validation = None
    if plan.held_out is not None:
        first = plan.held_out.first_validation_row
        validation = inputs[first:], targets[first:]
        inputs, targets = (part[: plan.held_out.num_training_rows] for part in (inputs, targets))
    placement = place_rows(
        len(inputs),
        inputs.shape[1],
        _memory(seat.device, workers_on_node),
        is_mapped=mapped_file(scaled) is not None,
    )
    order = Order(
        num_rows=len(inputs),
        batch_size=config.batch_size,
        seed=config.seed,
        positives=targets > 0 if config.sampling == "balanced" else None,
    )
    with _deterministic(seat.device):
        outcome = train(
            build(config, num_features=inputs.shape[1]),
            config,
            hold(placement.where, inputs, targets, order=order, seat=seat),
            journal=journal,
            seat=seat,
            weight=plan.weight,
            validation=validation,
        )
    return {
        "weights": {name: value.numpy() for name, value in outcome.weights.items()},
        "history": outcome.history,
        "facts": {"rows_lie": placement.where, "rows_lie_there_as": placement.reason},
        _DIVERGED: outcome.divergence,
    }


def _tensor(values: np.ndarray[Any, Any]) -> Tensor:
    with warnings.catch_warnings():
        # Ray's arrays are read-only views of memory that all workers share; none writes into it.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(values)


def _memory(device: torch.device, workers_on_node: int) -> Memory:
    host_bytes = psutil.virtual_memory().available // workers_on_node
    if device.type != "cuda":
        return Memory(device="cpu", device_bytes=host_bytes)
    free_bytes, _ = torch.cuda.mem_get_info(device)
    return Memory(device=torch.cuda.get_device_name(device), device_bytes=free_bytes)


@contextmanager
def _deterministic(device: torch.device) -> Iterator[None]:
    """On a CPU, let torch take no shortcut whose result may differ from run to run."""
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(mode=device.type == "cpu")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(mode=before)


def _native(
    config: TorchConfig, scaled: Scaled, labels: Labels, returned: Mapping[str, Any]
) -> TorchNet:
    center, spread = standard(config, labels)
    num_features = scaled.shape[1]
    net = build(config, num_features=num_features)
    weights = {name: torch.from_numpy(value.copy()) for name, value in returned["weights"].items()}
    net.load_state_dict(weights)
    return TorchNet(net=net, config=config, num_features=num_features, center=center, spread=spread)


def _fitted(
    config: TorchConfig, scaled: Scaled, labels: Labels, returned: Mapping[str, Any]
) -> Fitted:
    native = _native(config, scaled, labels, returned)
    return Fitted(
        native=native,
        onnx=export(native),
        history=returned["history"],
        facts=returned["facts"],
    )
