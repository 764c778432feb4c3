"""How a use case declares what is fitted; the fits stand in estimators/."""

from typing import Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from penstock.records import Record
from penstock.training.metric_declarations import Task

Loss = Literal["log_loss", "squared_error", "absolute_error"]
"""What a fit makes small: log_loss for two classes; for numbers squared_error, which aims at the
mean, or absolute_error, which aims at the median."""


class _Estimator(Record):
    seed: int = 0


class _OneTask(_Estimator):
    num_cpus: int = Field(default=1, ge=1)
    """CPUs, and so threads, of the one Ray task that fits."""


class LogisticRegression(_OneTask):
    """scikit-learn's, with its defaults: two classes."""

    task: ClassVar[Task] = "binary"
    kind: Literal["logistic_regression"] = "logistic_regression"
    inverse_regularization: float = Field(default=1.0, gt=0)
    max_iterations: int = Field(default=100, ge=1)


class Ridge(_OneTask):
    """scikit-learn's linear regression with a squared penalty on the weights: a number."""

    task: ClassVar[Task] = "regression"
    kind: Literal["ridge"] = "ridge"
    penalty: float = Field(default=1.0, ge=0)
    """0: ordinary least squares."""


class _Trees(_OneTask):
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


class _Distributed(_Estimator):
    loss: Loss = "log_loss"
    num_workers: int = Field(default=1, ge=1)
    """Ray Train's workers; each has its share of the rows."""
    num_cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs, and so threads, of one worker."""
    use_gpu: bool | None = None
    """A GPU for each worker: asked for and waited for, or not used; None: where Ray has enough
    now, which an autoscaler that starts GPU nodes on demand is never asked for."""
    max_failures: int = Field(default=2, ge=0)
    """How often a lost worker is replaced and training goes on from its last checkpoint."""

    @property
    def task(self) -> Task:
        """What the label has to be."""
        return "binary" if self.loss == "log_loss" else "regression"


class XGBoost(_Distributed):
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


class _TorchTraining(_Distributed):
    num_epochs: int = Field(default=20, ge=1)
    batch_size: int = Field(default=256, ge=1)
    """Rows of one optimiser step, all workers together."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Where Adam starts; it falls to zero along half a cosine."""


class TorchMLP(_TorchTraining):
    """A feed-forward net: linear layers with ReLU between, trained by Adam."""

    kind: Literal["torch_mlp"] = "torch_mlp"
    hidden_sizes: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    dropout: float = Field(default=0.0, ge=0, lt=1)


class TorchModule(_TorchTraining):
    """A torch module of the user's own, named by its import path.

    The class is called with the number of features; its forward takes float32 [n, F] and gives
    logits, [n] or [n, 1]; for a number its output is taken in standard deviations from the mean
    of the training labels.
    """

    kind: Literal["torch_module"] = "torch_module"
    module: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:ClassName`, importable from the feature repo or the environment."""


Estimator = Annotated[
    LogisticRegression | Ridge | DecisionTree | RandomForest | XGBoost | TorchMLP | TorchModule,
    Field(discriminator="kind"),
]
