"""How a use case declares what is measured; the arithmetic stands in metrics.py."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from penstock.records import Record

Task = Literal["binary", "regression", "unsupervised"]
"""What a label is: one of two classes, a number, or nothing that a fit looks at."""


class RocAuc(Record):
    """Area under the ROC curve."""

    task: ClassVar[Task] = "binary"
    kind: Literal["roc_auc"] = "roc_auc"
    name: str = "roc_auc"
    higher_is_better: Literal[True] = True


class AveragePrecision(Record):
    """Area under the precision-recall curve, as a step function."""

    task: ClassVar[Task] = "binary"
    kind: Literal["average_precision"] = "average_precision"
    name: str = "average_precision"
    higher_is_better: Literal[True] = True


class TopGroupsPrecision(Record):
    """The share of the `k` highest-scored groups of each day that are positive, mean over days."""

    task: ClassVar[Task] = "binary"
    kind: Literal["top_groups_precision"] = "top_groups_precision"
    name: str
    group: str
    """The column whose values are ranked, by their highest score of the day."""
    k: int = Field(ge=1)
    drop_found: bool = True
    """A positive group that was among the k is left out on later days."""
    higher_is_better: Literal[True] = True


class LogLoss(Record):
    """Mean negative log likelihood, in nats."""

    task: ClassVar[Task] = "binary"
    kind: Literal["log_loss"] = "log_loss"
    name: str = "log_loss"
    higher_is_better: Literal[False] = False


class BrierScore(Record):
    """Mean squared distance of score and label."""

    task: ClassVar[Task] = "binary"
    kind: Literal["brier_score"] = "brier_score"
    name: str = "brier_score"
    higher_is_better: Literal[False] = False


class CalibrationError(Record):
    """Expected calibration error over bins of equal width."""

    task: ClassVar[Task] = "binary"
    kind: Literal["calibration_error"] = "calibration_error"
    name: str = "calibration_error"
    num_bins: int = Field(default=10, ge=2)
    higher_is_better: Literal[False] = False


class MeanAbsoluteError(Record):
    """Mean distance of score and label, in the label's unit."""

    task: ClassVar[Task] = "regression"
    kind: Literal["mean_absolute_error"] = "mean_absolute_error"
    name: str = "mean_absolute_error"
    higher_is_better: Literal[False] = False


class RootMeanSquaredError(Record):
    """Root of the mean squared distance of score and label, in the label's unit."""

    task: ClassVar[Task] = "regression"
    kind: Literal["root_mean_squared_error"] = "root_mean_squared_error"
    name: str = "root_mean_squared_error"
    higher_is_better: Literal[False] = False


class R2(Record):
    """The share of the label's variance that the scores explain; below 0: less than its mean."""

    task: ClassVar[Task] = "regression"
    kind: Literal["r2"] = "r2"
    name: str = "r2"
    higher_is_better: Literal[True] = True


class MeanScore(Record):
    """The mean score: of k-means, how far rows lie from their centres."""

    task: ClassVar[Task] = "unsupervised"
    kind: Literal["mean_score"] = "mean_score"
    name: str = "mean_score"
    higher_is_better: Literal[False] = False


class FlaggedShare(Record):
    """The share of rows that score `threshold` or more."""

    task: ClassVar[Task] = "unsupervised"
    kind: Literal["flagged_share"] = "flagged_share"
    name: str = "flagged_share"
    threshold: float
    higher_is_better: Literal[False] = False


Metric = Annotated[
    RocAuc
    | AveragePrecision
    | TopGroupsPrecision
    | LogLoss
    | BrierScore
    | CalibrationError
    | MeanAbsoluteError
    | RootMeanSquaredError
    | R2
    | MeanScore
    | FlaggedShare,
    Field(discriminator="kind"),
]


class Bootstrap(Record):
    """How the intervals of metrics are found: by drawing the test again and again."""

    num_resamples: int = Field(default=1000, ge=100)
    """At most: millions of rows are drawn fewer times."""
    level: float = Field(default=0.95, gt=0, lt=1)
    """The share of the resamples that an interval holds."""
    unit: Literal["row", "day"] = "row"
    """What is drawn. Rows of one day that err together, as a series' neighbours do, are no evidence
    for each other: with "day" the interval is as wide as it has to be. Rankings of groups always
    draw groups."""
    seed: int = 0
