"""Neural nets by torch on Ray Train: our own feed-forward net, or a module of the user's."""

import importlib
import logging
import math
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import orjson
import torch
from pydantic import TypeAdapter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from penstock.errors import DeclarationError
from penstock.training.declarations import Loss, TorchMLP, TorchModule
from penstock.training.estimators.base import (
    INPUT,
    OUTPUT,
    FitJob,
    Fitted,
    Labels,
    Scaled,
    Scores,
)

TorchConfig = TorchMLP | TorchModule
_CONFIG: TypeAdapter[TorchConfig] = TypeAdapter(TorchConfig)
_LOSSES: Mapping[Loss, Callable[..., Tensor]] = {
    "log_loss": nn.functional.binary_cross_entropy_with_logits,
    "squared_error": nn.functional.mse_loss,
    "absolute_error": nn.functional.l1_loss,
}
_CONFIG_FILE = "net.json"
_WEIGHTS_FILE = "net.safetensors"
_CHECKPOINT_FILE = "checkpoint.pt"
_ROWS_AT_ONCE = 65_536


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
            return _import_net(config.module, num_features=num_features)


def _import_net(path: str, *, num_features: int) -> nn.Module:
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
    net = found(num_features)
    with torch.no_grad():
        shape = tuple(net.eval()(torch.zeros(2, num_features)).shape)
    if shape not in {(2,), (2, 1)}:
        raise DeclarationError(
            f"{path!r} gives the shape {shape} for 2 rows", allowed="logits, [n] or [n, 1]"
        )
    return net


def fit(config: TorchConfig, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit on `config.num_workers` workers, with DDP where there are several."""
    from ray.train.torch import TorchTrainer

    from penstock.training.estimators import distributed

    center, spread = _standard(config, labels)
    returned = distributed.run(
        TorchTrainer,
        _worker,
        config,
        scaled,
        ((labels - center) / spread).astype(np.float64),
        job,
        extra={"import_folders": job.import_folders},
    )
    num_features = scaled.shape[1]
    _extend_path(job.import_folders)
    net = build(config, num_features=num_features)
    weights = {name: torch.from_numpy(value.copy()) for name, value in returned["weights"].items()}
    net.load_state_dict(weights)
    native = TorchNet(
        net=net, config=config, num_features=num_features, center=center, spread=spread
    )
    return Fitted(native=native, onnx=export(native), history=returned["history"])


def _standard(config: TorchConfig, labels: Labels) -> tuple[float, float]:
    """The mean and deviation that the net's outputs are in: a net learns small numbers well."""
    if config.task == "binary":
        return 0.0, 1.0
    return float(labels.mean()), float(labels.std()) or 1.0


def _extend_path(folders: tuple[str, ...]) -> None:
    for folder in folders:
        # A relative folder is one of the job's working directory, which differs by node.
        absolute = str(Path(folder).resolve())
        if absolute not in sys.path and Path(absolute).is_dir():
            sys.path.insert(0, absolute)


def _worker(parts: dict[str, Any]) -> dict[str, Any]:
    import ray
    import ray.train.torch

    from penstock.training.estimators import distributed

    config: TorchConfig = parts["config"]
    _extend_path(parts["import_folders"])
    torch.set_num_threads(config.num_cpus_per_worker)
    torch.use_deterministic_algorithms(mode=not parts["use_gpu"])
    rank, world = distributed.share()
    device = ray.train.torch.get_device()
    scaled, labels = ray.get([parts["scaled"], parts["labels"]])
    # Ray's arrays are read-only views of shared memory, which torch does not take.
    inputs = torch.from_numpy(scaled.copy()).to(device)
    targets = torch.from_numpy(labels.astype(np.float32)).to(device)

    net = build(config, num_features=inputs.shape[1])
    trained = ray.train.torch.prepare_model(net)
    optimizer = torch.optim.Adam(trained.parameters(), lr=config.learning_rate)
    steps = config.num_epochs * math.ceil(len(inputs) / config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    history = _resume(net, optimizer, schedule)
    for epoch in range(len(history), config.num_epochs):
        loss = _train_epoch(
            trained, optimizer, schedule, inputs, targets, config, epoch, rank=rank, world=world
        )
        if not math.isfinite(loss):
            return {distributed.DIVERGED: epoch + 1}
        history.append({"train_loss": loss, "learning_rate": float(schedule.get_last_lr()[0])})
        _report(net, optimizer, schedule, history, first=rank == 0)
    weights = {name: value.cpu().numpy() for name, value in net.state_dict().items()}
    return {"weights": weights, "history": history}


def _train_epoch(
    trained: nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: torch.optim.lr_scheduler.LRScheduler,
    inputs: Tensor,
    targets: Tensor,
    config: TorchConfig,
    epoch: int,
    *,
    rank: int,
    world: int,
) -> float:
    """Train one epoch; give its mean loss over all workers' rows."""
    # Each epoch has its own seed, so that one resumed after a restart is the same epoch.
    torch.manual_seed(config.seed + 1_000_003 * (epoch + 1) + rank)
    trained.train()
    total = torch.zeros((), dtype=torch.float64, device=inputs.device)
    for batch in _batches(len(inputs), config.batch_size, seed=config.seed, epoch=epoch):
        own = batch[rank::world].to(inputs.device)
        optimizer.zero_grad(set_to_none=True)
        logits = trained(inputs[own]).reshape(-1)
        summed = _LOSSES[config.loss](logits, targets[own], reduction="sum")
        # DDP takes the mean over workers; this makes it the mean over the batch's rows, however
        # unevenly they are shared out.
        (summed * world / len(batch)).backward()  # type: ignore[no-untyped-call]  # torch left it so
        optimizer.step()
        schedule.step()
        total += summed.detach().double()
    if world > 1:
        torch.distributed.all_reduce(total)
    return float(total) / len(inputs)


def _batches(num_rows: int, batch_size: int, *, seed: int, epoch: int) -> Iterator[Tensor]:
    """Yield the same shuffled batches of row numbers on every worker."""
    generator = torch.Generator().manual_seed(seed + 7_919 * epoch)
    yield from torch.randperm(num_rows, generator=generator).split(batch_size)  # type: ignore[no-untyped-call]  # torch left it so


def _resume(net: nn.Module, optimizer: Any, schedule: Any) -> list[dict[str, float]]:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return []
    with checkpoint.as_directory() as folder:
        state = torch.load(Path(folder) / _CHECKPOINT_FILE, weights_only=True, map_location="cpu")
    net.load_state_dict(state["net"])
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    return list(state["history"])


def _report(
    net: nn.Module, optimizer: Any, schedule: Any, history: list[dict[str, float]], *, first: bool
) -> None:
    import ray.train

    if not first:
        ray.train.report(dict(history[-1]))
        return
    with tempfile.TemporaryDirectory() as folder:
        state = {
            "net": net.state_dict(),
            "optimizer": optimizer.state_dict(),
            "schedule": schedule.state_dict(),
            "history": history,
        }
        torch.save(state, Path(folder) / _CHECKPOINT_FILE)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report(dict(history[-1]), checkpoint=checkpoint)


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
