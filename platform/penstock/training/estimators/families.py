"""Picks the family of a declared estimator; only the chosen one's library is imported."""

from pathlib import Path

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
    TorchMLP,
    TorchModule,
    XGBoost,
)
from penstock.training.estimator_base import DistributedEstimator, OneTaskEstimator
from penstock.training.estimators.base import FitJob, Fitted, Labels, NativeModel, Scaled


def fit(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit the estimator on Ray.

    Args:
        config: the declared estimator.
        scaled: float32 [n, F], filled and standardised.
        labels: [n], 0 or 1, or numbers where the estimator is for regression.
        job: where checkpoints go.
    """
    match config:
        case LogisticRegression() | Ridge() | DecisionTree() | RandomForest():
            from penstock.training.estimators import scikit

            return scikit.fit(config, scaled, labels)
        case IsolationForest() | KMeans():
            from penstock.training.estimators import unlabelled

            return unlabelled.fit(config, scaled, labels)
        case XGBoost():
            from penstock.training.estimators import xgboost_trees

            return xgboost_trees.fit(config, scaled, labels, job)
        case LightGBM():
            from penstock.training.estimators import lightgbm_trees

            return lightgbm_trees.fit(config, scaled, labels, job)
        case TorchMLP() | TorchModule():
            from penstock.training.estimators import torch_nets

            return torch_nets.fit(config, scaled, labels, job)
        case Ensemble():
            from penstock.training.estimators import ensemble

            return ensemble.fit(config, scaled, labels, job)


def cpus_of_one_task(config: Estimator) -> int | None:
    """Give the CPUs of the one task that can fit the estimator, or None: Ray Train has to."""
    match config:
        case OneTaskEstimator():
            return config.num_cpus
        case DistributedEstimator() if config.num_workers == 1 and not config.use_gpu:
            return config.num_cpus_per_worker
        case _:
            return None


def fit_here(config: Estimator, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit in this process what one task can fit, as `fit` would, without its checkpoints.

    Raises:
        DeclarationError: only Ray Train's workers can fit it.
    """
    match config:
        case LogisticRegression() | Ridge() | DecisionTree() | RandomForest():
            from penstock.training.estimators import scikit

            return scikit.fit_here(config, scaled, labels)
        case IsolationForest() | KMeans():
            from penstock.training.estimators import unlabelled

            return unlabelled.fit_here(config, scaled, labels)
        case XGBoost() if cpus_of_one_task(config) is not None:
            from penstock.training.estimators import xgboost_trees

            return xgboost_trees.fit_here(config, scaled, labels, job)
        case LightGBM() if cpus_of_one_task(config) is not None:
            from penstock.training.estimators import lightgbm_trees

            return lightgbm_trees.fit_here(config, scaled, labels, job)
        case TorchMLP() | TorchModule() if cpus_of_one_task(config) is not None:
            from penstock.training.estimators import torch_nets

            return torch_nets.fit_here(config, scaled, labels, job)
        case _:
            raise DeclarationError(
                f"{type(config).__name__} cannot be fitted by one task",
                next_step="let Ray Train fit it",
            )


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
        allowed="linear, forest, isolation_forest, k_means, xgboost, lightgbm, torch or ensemble",
        next_step="read it with the version of Penstock that wrote it",
    )
