"""Picks the family of a declared estimator; only the chosen one's library is imported."""

from pathlib import Path
from typing import Any, Protocol

from penstock.errors import DeclarationError, IntegrityError
from penstock.training.declarations import (
    DecisionTree,
    Ensemble,
    Estimator,
    IsolationForest,
    KMeans,
    LightGBM,
    LogisticRegression,
    RandomForest,
    Ridge,
    ScikitEstimator,
    TorchMLP,
    TorchModule,
    XGBoost,
)
from penstock.training.estimator_base import DistributedEstimator, OneTaskEstimator
from penstock.training.estimators.base import FitJob, Fitted, Labels, NativeModel, Scaled
from penstock.training.single_estimators import SingleEstimator


class Family(Protocol):
    """What a family's module offers; each function takes its own kinds of estimator."""

    def fit_here(self, config: Any, scaled: Scaled, labels: Labels, job: FitJob, /) -> Fitted:
        """Fit in this process, without checkpoints."""
        ...

    def fit_native(
        self, config: Any, scaled: Scaled, labels: Labels, job: FitJob, /
    ) -> NativeModel:
        """Fit in this process, and make no graph."""
        ...


class DistributedFamily(Family, Protocol):
    """A family that Ray Train's workers can fit."""

    def fit(self, config: Any, scaled: Scaled, labels: Labels, job: FitJob, /) -> Fitted:
        """Fit on Ray Train."""
        ...


def fit(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit the estimator on Ray.

    Args:
        config: the declared estimator.
        scaled: float32 [n, F], filled and standardised.
        labels: [n], 0 or 1, or numbers where the estimator is for regression.
        job: where checkpoints go.
    """
    match config:
        case Ensemble():
            from penstock.training.estimators import ensemble

            return ensemble.fit(config, scaled, labels, job)
        case OneTaskEstimator():
            import ray

            fitted: Fitted = ray.get(fit_in_task(config, scaled, labels, job))
            return fitted
        case _:
            return _distributed(config).fit(config, scaled, labels, job)


def fit_in_task(config: Estimator, scaled: Scaled, labels: Any, job: FitJob) -> Any:
    """Begin `fit_here` as a Ray task with the threads of its CPUs; gives a reference to its result.

    The labels may be a reference too.
    """
    import ray

    task = ray.remote(fit_here).options(num_cpus=cpus_of_one_task(config), max_retries=2)
    return task.remote(config, scaled, labels, job)


def fit_here(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit in this process what one task can fit, as `fit` would, without its checkpoints.

    Raises:
        DeclarationError: only Ray Train's workers can fit it.
    """
    return _family(_of_one_task(config)).fit_here(config, scaled, labels, job)


def fit_native(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> NativeModel:
    """Fit as `fit_here` does, and make no graph: that takes longer than many a fit.

    Raises:
        DeclarationError: only Ray Train's workers can fit it.
    """
    return _family(_of_one_task(config)).fit_native(config, scaled, labels, job)


def cpus_of_one_task(config: Estimator) -> int | None:
    """Give the CPUs of the one task that can fit the estimator, or None: Ray Train has to."""
    match config:
        case OneTaskEstimator():
            return config.num_cpus
        case DistributedEstimator() if config.num_workers == 1 and not config.use_gpu:
            return config.num_cpus_per_worker
        case _:
            return None


def _of_one_task(config: Estimator) -> SingleEstimator:
    if isinstance(config, Ensemble) or cpus_of_one_task(config) is None:
        raise DeclarationError(
            f"{type(config).__name__} cannot be fitted by one task",
            next_step="let Ray Train fit it",
        )
    return config


def _family(config: SingleEstimator) -> Family:
    match config:
        case LogisticRegression() | Ridge() | DecisionTree() | RandomForest():
            from penstock.training.estimators import scikit

            return scikit
        case ScikitEstimator():
            from penstock.training.estimators import own_scikit

            return own_scikit
        case IsolationForest() | KMeans():
            from penstock.training.estimators import unlabelled

            return unlabelled
        case _:
            return _distributed(config)


def _distributed(config: XGBoost | LightGBM | TorchMLP | TorchModule) -> DistributedFamily:
    match config:
        case XGBoost():
            from penstock.training.estimators import xgboost_trees

            return xgboost_trees
        case LightGBM():
            from penstock.training.estimators import lightgbm_trees

            return lightgbm_trees
        case TorchMLP() | TorchModule():
            from penstock.training.estimators import torch_nets

            return torch_nets


def load(family: str, folder: Path) -> NativeModel:
    """Read a native model back from its folder.

    Raises:
        IntegrityError: there is no such family.
    """
    match family:
        case "linear":
            from penstock.training.estimators.scikit import LinearModel

            return LinearModel.load(folder)
        case "forest":
            from penstock.training.estimators.scikit import Forest

            return Forest.load(folder)
        case "graph":
            from penstock.training.estimators.own_scikit import GraphModel

            return GraphModel.load(folder)
        case "isolation_forest":
            from penstock.training.estimators.unlabelled import IsolationTrees

            return IsolationTrees.load(folder)
        case "k_means":
            from penstock.training.estimators.unlabelled import Centres

            return Centres.load(folder)
        case "xgboost":
            from penstock.training.estimators.xgboost_trees import BoostedTrees

            return BoostedTrees.load(folder)
        case "lightgbm":
            from penstock.training.estimators.lightgbm_trees import LeafwiseTrees

            return LeafwiseTrees.load(folder)
        case "torch":
            from penstock.training.estimators.torch_export import TorchNet

            return TorchNet.load(folder)
        case "ensemble":
            from penstock.training.estimators.ensemble import Together

            return Together.load(folder)
    raise IntegrityError(
        f"{folder} holds a model of the unknown family {family!r}",
        allowed="linear, forest, graph, isolation_forest, k_means, xgboost, lightgbm, torch or "
        "ensemble",
        next_step="read it with the version of Penstock that wrote it",
    )
