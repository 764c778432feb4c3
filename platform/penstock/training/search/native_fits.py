"""Fits an estimator within one task to what gives scores, and makes no graph of it.

The graph of a trial would be thrown away, and making it takes longer than many a fit.
"""

from typing import Any

from penstock.errors import DeclarationError
from penstock.training.declarations import (
    DecisionTree,
    Ensemble,
    Estimator,
    LightGBM,
    LogisticRegression,
    RandomForest,
    Ridge,
    TorchMLP,
    TorchModule,
    XGBoost,
)
from penstock.training.estimator_base import DistributedEstimator, OneTaskEstimator
from penstock.training.estimators.base import FitJob, Labels, NativeModel, Scaled
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
    """Give the CPUs, and so the threads, that a trial's fit holds."""
    if isinstance(config, OneTaskEstimator):
        return config.num_cpus
    return config.num_cpus_per_worker


def fit_native(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> NativeModel:
    """Fit in this process.

    Args:
        config: the estimator.
        scaled: float32 [n, F], filled and scaled.
        labels: [n].
        job: when the rows' events were, and where a user's own module is imported from.

    Raises:
        DeclarationError: one process cannot fit it.
    """
    match config:
        case LogisticRegression() | Ridge() | DecisionTree() | RandomForest():
            from penstock.training.estimators import scikit

            return scikit.fit_native(config, scaled, labels)
        case XGBoost():
            from penstock.training.estimators import xgboost_trees

            return xgboost_trees.fit_native(config, scaled, labels, job)
        case LightGBM():
            from penstock.training.estimators import lightgbm_trees

            return lightgbm_trees.fit_native(config, scaled, labels, job)
        case TorchMLP() | TorchModule():
            from penstock.training.estimators import torch_nets

            return torch_nets.fit_native(config, scaled, labels, job)
        case _:
            raise DeclarationError(
                f"{type(config).__name__} cannot be fitted by one task",
                next_step="search another estimator",
            )
