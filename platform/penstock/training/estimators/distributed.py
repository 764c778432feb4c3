"""Runs a training function on Ray Train's workers."""

import logging
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import ray
import ray.train
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2.api.exceptions import TrainingFailedError

from penstock.errors import PenstockError
from penstock.settings import export_environment
from penstock.training.estimator_base import DistributedEstimator
from penstock.training.estimators.base import FitJob, Labels, Scaled
from penstock.training.mapped_rows import mapped_file


def run(
    trainer: Callable[..., Any],
    worker: Callable[[dict[str, Any]], Any],
    config: DistributedEstimator,
    scaled: Scaled,
    labels: Labels,
    job: FitJob,
    *,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Run `worker` on every worker and give what the first one returned.

    A lost worker is replaced up to `config.max_failures` times, and so is a lost driver when the
    same job runs again: both go on from the last checkpoint.

    Raises:
        PenstockError: training failed, after all allowed failures.
    """
    use_gpu = has_gpus(config.fewest_workers) if config.use_gpu is None else config.use_gpu
    num_nodes = len(ray.nodes())  # type: ignore[no-untyped-call]  # Ray left it so
    export_environment(_controller_environment(num_nodes=num_nodes))
    with warnings.catch_warnings():
        # Ray Data 2.60's context, which Ray Train makes, sets what it deprecates itself.
        warnings.filterwarnings("ignore", message="`use_[a-z0-9_]+` is deprecated")
        fit = trainer(
            worker,
            train_loop_config={
                "scaled": mapped_file(scaled) or ray.put(scaled),
                "labels": ray.put(labels),
                "config": config,
                "use_gpu": use_gpu,
                **extra,
            },
            scaling_config=ScalingConfig(
                num_workers=num_workers(config),  # type: ignore[arg-type]  # typed as V1
                use_gpu=use_gpu,
                resources_per_worker={"CPU": config.num_cpus_per_worker, "GPU": 1}
                if use_gpu
                else {"CPU": config.num_cpus_per_worker},
            ),
            run_config=RunConfig(
                name=job.name,
                storage_path=str(job.checkpoints),
                failure_config=FailureConfig(max_failures=config.max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                # It remarks on each report otherwise; the metrics stand in the tracked run.
                logging_config=LoggingConfig(log_level="WARNING"),  # type: ignore[call-arg]  # typed as V1
            ),
        )
    try:
        result = fit.fit()
    except TrainingFailedError as error:
        raise PenstockError(
            f"training failed: {_cause(error)}",
            next_step="read the workers' logs in the Ray dashboard, under Jobs",
        ) from error
    return dict(result.return_value or {})


def rows_of(parts: Mapping[str, Any]) -> tuple[Scaled, npt.NDArray[Any]]:
    """Give the rows and labels that a worker was handed: shared memory, or a file that it maps."""
    scaled, labels = parts["scaled"], ray.get(parts["labels"])
    if isinstance(scaled, Path):
        return np.load(scaled, mmap_mode="r", allow_pickle=False), labels
    return ray.get(scaled), labels


def num_workers(config: DistributedEstimator) -> int | tuple[int, int]:
    """Give how many workers Ray Train is to start: so many, or between two numbers of them."""
    if config.fewest_workers == config.num_workers:
        return config.num_workers
    return config.fewest_workers, config.num_workers


def _controller_environment(*, num_nodes: int) -> dict[str, str | None]:
    return {
        # Every fit ends on a tick of the controller's health check, 2 s apart by default; each tick
        # takes some milliseconds from the workers of a small machine.
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
        # One node has nothing that could be preempted without the driver; the watcher is one more
        # process to start, and warns of itself (ray#53727).
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0" if num_nodes == 1 else "1",
    }


def share() -> tuple[int, int]:
    """Give this worker's rank and the number of workers."""
    # Ray 2.60 names this one logger by its file, out of reach of the run's own log level.
    logging.getLogger(train_context.__file__).setLevel(logging.WARNING)
    context = ray.train.get_context()
    return context.get_world_rank(), context.get_world_size()


def has_gpus(num_workers: int) -> bool:
    """Say whether Ray has a GPU for each worker."""
    return bool(ray.cluster_resources().get("GPU", 0) >= num_workers)  # type: ignore[no-untyped-call]  # Ray left it so


def _cause(error: TrainingFailedError) -> str:
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), error)
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    return lines[-1].strip() if lines else type(first).__name__
