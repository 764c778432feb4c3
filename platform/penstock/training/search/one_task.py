"""The estimator of a trial: one that a single task can fit."""

from typing import Any

from penstock.errors import DeclarationError
from penstock.training.declarations import Ensemble, Estimator
from penstock.training.estimator_base import DistributedEstimator
from penstock.training.estimators import families
from penstock.training.search_declarations import with_values
from penstock.training.single_estimators import SingleEstimator


def for_one_task(config: Estimator) -> SingleEstimator:
    """Give the estimator as a trial fits it: by one worker, which is one task, on a CPU.

    Raises:
        DeclarationError: it is an ensemble.
    """
    if isinstance(config, Ensemble):
        raise DeclarationError(
            "an ensemble has no fields of its own to search",
            next_step="search one of its members, or families with --auto",
        )
    if not isinstance(config, DistributedEstimator):
        return config
    alone: dict[str, Any] = {"num_workers": 1, "use_gpu": False}
    return with_values(config, alone, of="a trial of one task")


def num_cpus(config: SingleEstimator) -> int:
    """Give the CPUs, and so the threads, that the fit of a trial holds."""
    # None is for what `for_one_task` does not give.
    return families.cpus_of_one_task(config) or 1
