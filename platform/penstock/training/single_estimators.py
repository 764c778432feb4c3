"""Estimators that are fitted by themselves, and the union of all of them."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from penstock.training.estimator_base import Loss as Loss
from penstock.training.estimator_base import OneTaskEstimator
from penstock.training.metric_declarations import Task
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


SingleEstimator = Annotated[
    LogisticRegression
    | Ridge
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
