"""How a use case declares what is fitted; the fits stand in estimators/."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from penstock.training.estimator_base import DistributedEstimator, OneTaskEstimator
from penstock.training.estimator_base import Loss as Loss
from penstock.training.metric_declarations import Task
from penstock.training.torch_declarations import TorchMLP as TorchMLP
from penstock.training.torch_declarations import TorchModule as TorchModule


class LogisticRegression(OneTaskEstimator):
    """scikit-learn's, with its defaults: two classes."""

    task: ClassVar[Task] = "binary"
    kind: Literal["logistic_regression"] = "logistic_regression"
    inverse_regularization: float = Field(default=1.0, gt=0)
    max_iterations: int = Field(default=100, ge=1)


class Ridge(OneTaskEstimator):
    """scikit-learn's linear regression with a squared penalty on the weights: a number."""

    task: ClassVar[Task] = "regression"
    kind: Literal["ridge"] = "ridge"
    penalty: float = Field(default=1.0, ge=0)
    """0: ordinary least squares."""


class _Trees(OneTaskEstimator):
    criterion: Literal["gini", "squared_error"] = "gini"
    """What a split makes small: gini for two classes, squared_error for a number."""
    max_depth: int | None = Field(default=None, ge=1)
    min_samples_leaf: int = Field(default=1, ge=1)

    @property
    def task(self) -> Task:
        """What the label has to be."""
        return "binary" if self.criterion == "gini" else "regression"


class DecisionTree(_Trees):
    """scikit-learn's, with its defaults but for the depth where one is given."""

    kind: Literal["decision_tree"] = "decision_tree"


class RandomForest(_Trees):
    """scikit-learn's, with its defaults."""

    kind: Literal["random_forest"] = "random_forest"
    num_trees: int = Field(default=100, ge=1)


class XGBoost(DistributedEstimator):
    """Gradient-boosted trees by Ray Train, with XGBoost's defaults."""

    kind: Literal["xgboost"] = "xgboost"
    num_rounds: int = Field(default=100, ge=1)
    max_depth: int = Field(default=6, ge=1)
    learning_rate: float = Field(default=0.3, gt=0)
    max_bins: int = Field(default=256, ge=2)
    """Candidate thresholds per feature."""
    initial_score: float | None = Field(default=None, allow_inf_nan=False)
    """The score that boosting starts from; None: the share of positives, or the label's mean or
    median."""
    min_child_weight: float = Field(default=1.0, ge=0)
    subsample: float = Field(default=1.0, gt=0, le=1)
    column_sample_by_tree: float = Field(default=1.0, gt=0, le=1)

    @model_validator(mode="after")
    def _check_initial_score(self) -> Self:
        given = self.initial_score
        if self.task == "binary" and given is not None and not 0 < given < 1:
            raise ValueError(f"initial_score is {given}, no probability between 0 and 1")
        return self


Estimator = Annotated[
    LogisticRegression | Ridge | DecisionTree | RandomForest | XGBoost | TorchMLP | TorchModule,
    Field(discriminator="kind"),
]
