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
from ray.exceptions import RayActorError
from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution import context as train_context
from ray.train.v2.api.exceptions import TrainingFailedError

from penstock.errors import PenstockError
from penstock.settings import export_environment
from penstock.training.estimator_base import DistributedEstimator
from penstock.training.estimators.base import FitJob, Labels, Scaled
from penstock.training.mapped_rows import mapped_file

_logger = logging.getLogger(__name__)


def run(
    trainer: type[Any],
    worker: Callable[[dict[str, Any]], Any],
    config: DistributedEstimator,
    scaled: Scaled,
    labels: Labels,
    job: FitJob,
    *,
    extra: Mapping[str, Any],
) -> dict[str, Any]:
    """Run `worker` on every worker and give what the first one returned.

    A lost worker is replaced up to `config.max_failures` times, and so is a lost controller; where
    a driver is lost, the same job runs again. All of them go on from the last checkpoint.

    Raises:
        PenstockError: training failed, after all allowed failures.
    """
    use_gpu = has_gpus(config.fewest_workers) if config.use_gpu is None else config.use_gpu
    num_nodes = len(ray.nodes())  # type: ignore[no-untyped-call]  # Ray left it so
    export_environment(_controller_environment(num_nodes=num_nodes))
    parts = {
        "scaled": mapped_file(scaled) or ray.put(scaled),
        "labels": ray.put(labels),
        "config": config,
        "use_gpu": use_gpu,
        **extra,
    }
    for failures_left in reversed(range(config.max_failures + 1)):
        try:
            result = _trainer(trainer, worker, config, parts, job).fit()
            return dict(result.return_value or {})
        except TrainingFailedError as error:
            raise PenstockError(
                f"training failed: {_cause(error)}",
                next_step="read the workers' logs in the Ray dashboard, under Jobs",
            ) from error
        except RayActorError as error:
            _give_back_what_workers_had()
            if not failures_left:
                raise PenstockError(
                    f"training failed: its controller was lost {config.max_failures + 1} times",
                    next_step="look for what ends it, such as too little memory, and run it again",
                ) from error
            _logger.warning("the controller of this training was lost; it goes on with another")
    raise AssertionError("max_failures is at least 0")


def _trainer(
    trainer: type[Any],
    worker: Callable[[dict[str, Any]], Any],
    config: DistributedEstimator,
    parts: dict[str, Any],
    job: FitJob,
) -> Any:
    use_gpu = parts["use_gpu"]
    with warnings.catch_warnings():
        # Ray Data 2.60's context, which Ray Train makes, sets what it deprecates itself.
        warnings.filterwarnings("ignore", message="`use_[a-z0-9_]+` is deprecated")
        return with_fewer_processes(trainer)(
            worker,
            train_loop_config=parts,
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


def with_fewer_processes(trainer: type[Any]) -> type[Any]:
    """Give such a trainer without two processes of Ray Train 2.60 that serve no fit of ours.

    Each of them takes two seconds of a core to start, and a percent of one from the workers for as
    long as they are at work. One manages datasets, of which we hand over none. The other frees the
    place of the workers when the controller is lost and the driver is not; `run` does that.
    """

    class Trainer(trainer):  # type: ignore[misc]  # a class that is only known by now
        def _create_default_callbacks(self) -> list[Any]:
            left_out = (PlacementGroupCleanerCallback, DatasetsCallback)
            callbacks = super()._create_default_callbacks()
            return [callback for callback in callbacks if not isinstance(callback, left_out)]

    return Trainer


def _give_back_what_workers_had() -> None:
    """Free the place that a lost controller held for its workers, until the driver's end else."""
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group
    from ray.util.state import list_placement_groups

    job = ray.get_runtime_context().get_job_id()
    for group in list_placement_groups(filters=[("creator_job_id", "=", job)]):
        if group.state != "REMOVED":
            named = PlacementGroupID.from_hex(group.placement_group_id)
            remove_placement_group(PlacementGroup(named))


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
