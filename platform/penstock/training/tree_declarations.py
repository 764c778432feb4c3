"""How a use case declares trees; their fits stand in estimators/."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from penstock.records import Declaration
from penstock.training.estimator_base import DistributedEstimator, OneTaskEstimator
from penstock.training.metric_declarations import Task

PositiveWeight = Annotated[float, Field(gt=0)] | Literal["balanced"] | None
"""What a positive row weighs in the fit; balanced: as many times as negatives outnumber them; None:
what all do. With a weight, scores are no longer the share of positives to expect."""


class _Trees(OneTaskEstimator):
    criterion: Literal["gini", "squared_error"] = "gini"
    """What a split makes small: gini for two classes, squared_error for a number."""
    max_depth: int | None = Field(default=None, ge=1)
    min_samples_leaf: int = Field(default=1, ge=1)
    positive_weight: PositiveWeight = None

    @property
    def task(self) -> Task:
        """What the label has to be."""
        return "binary" if self.criterion == "gini" else "regression"

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        _refuse_weight_of_numbers(self.positive_weight, self.task)
        return self


class DecisionTree(_Trees):
    """scikit-learn's, with its defaults but for the depth where one is given."""

    kind: Literal["decision_tree"] = "decision_tree"


class RandomForest(_Trees):
    """scikit-learn's, with its defaults."""

    kind: Literal["random_forest"] = "random_forest"
    num_trees: int = Field(default=100, ge=1)


class BoostingStop(Declaration):
    """Ends boosting when the newest rows, which it does not train on, are predicted no better."""

    patience_rounds: int = Field(default=20, ge=1)
    """Rounds without a better validation loss after which it ends; the trees up to the best one
    stay."""
    validation_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of the training rows, the newest ones, that is held out. Older rows whose label was
    not known by then train nothing either."""


class BoostedTreesEstimator(DistributedEstimator):
    """What the libraries of boosted trees share."""

    num_rounds: int = Field(default=100, ge=1)
    """Trees, one after the other; with early stopping, at most so many."""
    subsample: float = Field(default=1.0, gt=0, le=1)
    """The share of rows that each tree is grown on, drawn anew for it."""
    column_sample_by_tree: float = Field(default=1.0, gt=0, le=1)
    positive_weight: PositiveWeight = None
    early_stopping: BoostingStop | None = None

    @property
    def draws(self) -> bool:
        """Whether each tree sees a draw of rows or columns."""
        return self.subsample < 1 or self.column_sample_by_tree < 1

    @model_validator(mode="after")
    def _check_weight(self) -> Self:
        _refuse_weight_of_numbers(self.positive_weight, self.task)
        return self


class XGBoost(BoostedTreesEstimator):
    """Gradient-boosted trees by Ray Train, with XGBoost's defaults."""

    kind: Literal["xgboost"] = "xgboost"
    max_depth: int = Field(default=6, ge=1)
    learning_rate: float = Field(default=0.3, gt=0)
    max_bins: int = Field(default=256, ge=2)
    """Candidate thresholds per feature."""
    initial_score: float | None = Field(default=None, allow_inf_nan=False)
    """The score that boosting starts from; None: the share of positives, or the label's mean or
    median."""
    min_child_weight: float = Field(default=1.0, ge=0)

    @model_validator(mode="after")
    def _check_initial_score(self) -> Self:
        given = self.initial_score
        if self.task == "binary" and given is not None and not 0 < given < 1:
            raise ValueError(f"initial_score is {given}, no probability between 0 and 1")
        return self


class LightGBM(BoostedTreesEstimator):
    """Gradient-boosted trees by Ray Train, grown leaf by leaf, with LightGBM's defaults."""

    kind: Literal["lightgbm"] = "lightgbm"
    use_gpu: Literal[False] = False
    """The packages of LightGBM on PyPI know no GPU."""
    num_leaves: int = Field(default=31, ge=2)
    """The leaves of each tree, at most."""
    max_depth: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(default=0.1, gt=0)
    max_bins: int = Field(default=255, ge=2)
    """Candidate thresholds per feature."""
    min_samples_leaf: int = Field(default=20, ge=0)
    min_child_weight: float = Field(default=1e-3, ge=0)


def _refuse_weight_of_numbers(weight: PositiveWeight, task: Task) -> None:
    if weight is not None and task != "binary":
        raise ValueError("positive_weight is for two classes, and the label is a number")
