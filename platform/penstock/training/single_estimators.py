"""Estimators that are fitted by themselves, and the union of all of them."""

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from penstock.training.estimator_base import ImportPath, OneTaskEstimator
from penstock.training.estimator_base import Loss as Loss
from penstock.training.metric_declarations import Task
from penstock.training.torch_declarations import Stage as Stage
from penstock.training.torch_declarations import TorchMLP as TorchMLP
from penstock.training.torch_declarations import TorchModule as TorchModule
from penstock.training.tree_declarations import BoostingStop as BoostingStop
from penstock.training.tree_declarations import DecisionTree as DecisionTree
from penstock.training.tree_declarations import LightGBM as LightGBM
from penstock.training.tree_declarations import PositiveWeight
from penstock.training.tree_declarations import RandomForest as RandomForest
from penstock.training.tree_declarations import XGBoost as XGBoost
from penstock.training.unlabelled_declarations import IsolationForest as IsolationForest
from penstock.training.unlabelled_declarations import KMeans as KMeans


class LogisticRegression(OneTaskEstimator):
    """scikit-learn's, with its defaults: two classes."""

    task: ClassVar[Task] = "binary"
    kind: Literal["logistic_regression"] = "logistic_regression"
    inverse_regularization: float = Field(default=1.0, gt=0)
    max_iterations: int = Field(default=100, ge=1)
    positive_weight: PositiveWeight = None


class Ridge(OneTaskEstimator):
    """scikit-learn's linear regression with a squared penalty on the weights: a number."""

    task: ClassVar[Task] = "regression"
    kind: Literal["ridge"] = "ridge"
    penalty: float = Field(default=1.0, ge=0)
    """0: ordinary least squares."""


class ScikitEstimator(OneTaskEstimator):
    """Any estimator of scikit-learn, or a class of the user's own with its interface.

    What the path names, a class or a function, is called with the options. What it gives has
    `fit(X, y)` on float32 [n, F], and `predict_proba(X)` for two classes or `predict(X)` for a
    number. The seed and the threads are set where it has `random_state` and `n_jobs` and the
    options leave them open. It must convert to ONNX: by skl2onnx, or by its own
    `to_onnx(num_features)`.
    """

    kind: Literal["scikit"] = "scikit"
    estimator: ImportPath
    """`package.module:Name`, importable from the feature repo or the environment."""
    options: Mapping[str, int | float | str | bool | None] = {}
    """Keyword arguments of it."""
    task: Literal["binary", "regression"] = "binary"
    """What the label has to be."""


SingleEstimator = Annotated[
    LogisticRegression
    | Ridge
    | ScikitEstimator
    | DecisionTree
    | RandomForest
    | XGBoost
    | LightGBM
    | IsolationForest
    | KMeans
    | TorchMLP
    | TorchModule,
    Field(discriminator="kind"),
]
