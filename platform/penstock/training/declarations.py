"""What a use case declares about its model: label, split, estimators, metrics, gates, serving.

Everything here is frozen, typed and keyword-only, and imports no vendor: a declaration costs
nothing to load.
"""

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from penstock.errors import DeclarationError, unknown_name
from penstock.handover import ServingPolicy as ServingPolicy
from penstock.records import Record
from penstock.settings import Settings
from penstock.use_cases import declared, import_declarations, split_name


class TimeSplit(Record):
    """Train on one stretch of time, test on a later one, with the label's delay between.

    Every stretch is half open: [start, end). A naive moment is read in `zone`, and days are
    counted in it.
    """

    train_start: datetime
    train_end: datetime
    test_start: datetime
    test_end: datetime
    label_delay: timedelta = timedelta(0)
    """How long after its event a label becomes known."""
    drop_known_positive_groups: str | None = None
    """A column: out of each test day go the rows of its groups that were positive since
    `train_start` and are already known to be, at the start of that day, by the label's delay."""
    zone: str = "UTC"

    @field_validator("zone")
    @classmethod
    def _check_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (ZoneInfoNotFoundError, ValueError):
            raise ValueError(f"{zone!r} is no time zone; an IANA name is: Europe/Paris") from None
        return zone

    @model_validator(mode="after")
    def _check_order(self) -> Self:
        if not self.train_start_utc < self.train_end_utc:
            raise ValueError("train_start must come before train_end")
        if not self.test_start_utc < self.test_end_utc:
            raise ValueError("test_start must come before test_end")
        if self.label_delay < timedelta(0):
            raise ValueError("label_delay must not be negative")
        if self.test_start_utc < self.train_end_utc + self.label_delay:
            raise ValueError(
                f"test_start is {self.test_start}, but the last training label is known only "
                f"{self.label_delay} after train_end {self.train_end}: the split would leak"
            )
        return self

    def _utc(self, moment: datetime) -> datetime:
        aware = moment if moment.tzinfo else moment.replace(tzinfo=ZoneInfo(self.zone))
        return aware.astimezone(UTC)

    @property
    def train_start_utc(self) -> datetime:
        """The first moment of training."""
        return self._utc(self.train_start)

    @property
    def train_end_utc(self) -> datetime:
        """The moment at which training data ends, itself left out."""
        return self._utc(self.train_end)

    @property
    def test_start_utc(self) -> datetime:
        """The first moment of the test."""
        return self._utc(self.test_start)

    @property
    def test_end_utc(self) -> datetime:
        """The moment at which the test ends, itself left out."""
        return self._utc(self.test_end)


class RocAuc(Record):
    """Area under the ROC curve."""

    kind: Literal["roc_auc"] = "roc_auc"
    name: str = "roc_auc"
    higher_is_better: Literal[True] = True


class AveragePrecision(Record):
    """Area under the precision-recall curve, as a step function."""

    kind: Literal["average_precision"] = "average_precision"
    name: str = "average_precision"
    higher_is_better: Literal[True] = True


class TopGroupsPrecision(Record):
    """The share of the `k` highest-scored groups of each day that are positive, mean over days."""

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

    kind: Literal["log_loss"] = "log_loss"
    name: str = "log_loss"
    higher_is_better: Literal[False] = False


class BrierScore(Record):
    """Mean squared distance of score and label."""

    kind: Literal["brier_score"] = "brier_score"
    name: str = "brier_score"
    higher_is_better: Literal[False] = False


class CalibrationError(Record):
    """Expected calibration error over bins of equal width."""

    kind: Literal["calibration_error"] = "calibration_error"
    name: str = "calibration_error"
    num_bins: int = Field(default=10, ge=2)
    higher_is_better: Literal[False] = False


Metric = Annotated[
    RocAuc | AveragePrecision | TopGroupsPrecision | LogLoss | BrierScore | CalibrationError,
    Field(discriminator="kind"),
]


class _Estimator(Record):
    seed: int = 0


class _OneTask(_Estimator):
    num_cpus: int = Field(default=1, ge=1)
    """CPUs, and so threads, of the one Ray task that fits."""


class LogisticRegression(_OneTask):
    """scikit-learn's, with its defaults."""

    kind: Literal["logistic_regression"] = "logistic_regression"
    inverse_regularization: float = Field(default=1.0, gt=0)
    max_iterations: int = Field(default=100, ge=1)


class DecisionTree(_OneTask):
    """scikit-learn's, with its defaults but for the depth where one is given."""

    kind: Literal["decision_tree"] = "decision_tree"
    max_depth: int | None = Field(default=None, ge=1)
    min_samples_leaf: int = Field(default=1, ge=1)


class RandomForest(_OneTask):
    """scikit-learn's, with its defaults."""

    kind: Literal["random_forest"] = "random_forest"
    num_trees: int = Field(default=100, ge=1)
    max_depth: int | None = Field(default=None, ge=1)
    min_samples_leaf: int = Field(default=1, ge=1)


class _Distributed(_Estimator):
    num_workers: int = Field(default=1, ge=1)
    """Ray Train's workers; each has its share of the rows."""
    num_cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs, and so threads, of one worker."""
    use_gpu: bool | None = None
    """A GPU for each worker: asked for and waited for, or not used; None: where Ray has enough
    now, which an autoscaler that starts GPU nodes on demand is never asked for."""
    max_failures: int = Field(default=2, ge=0)
    """How often a lost worker is replaced and training goes on from its last checkpoint."""


class XGBoost(_Distributed):
    """Gradient-boosted trees by Ray Train, with XGBoost's defaults."""

    kind: Literal["xgboost"] = "xgboost"
    num_rounds: int = Field(default=100, ge=1)
    max_depth: int = Field(default=6, ge=1)
    learning_rate: float = Field(default=0.3, gt=0)
    max_bins: int = Field(default=256, ge=2)
    """Candidate thresholds per feature."""
    initial_score: float | None = Field(default=None, gt=0, lt=1)
    """The score that boosting starts from; None: the share of positives."""
    min_child_weight: float = Field(default=1.0, ge=0)
    subsample: float = Field(default=1.0, gt=0, le=1)
    column_sample_by_tree: float = Field(default=1.0, gt=0, le=1)


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
    logits, [n] or [n, 1].
    """

    kind: Literal["torch_module"] = "torch_module"
    module: str = Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")
    """`package.module:ClassName`, importable from the feature repo or the environment."""


Estimator = Annotated[
    LogisticRegression | DecisionTree | RandomForest | XGBoost | TorchMLP | TorchModule,
    Field(discriminator="kind"),
]


class LeakAlarm(Record):
    """A metric too good to be true means that the future leaked into the features.

    The metric is one where higher is better.
    """

    metric: str = "average_precision"
    max_plausible: float


class MetricBound(Record):
    """What a challenger must keep to, whatever the champion is like."""

    metric: str
    at_least: float | None = None
    at_most: float | None = None

    @model_validator(mode="after")
    def _check_has_a_side(self) -> Self:
        if self.at_least is None and self.at_most is None:
            raise ValueError("a bound needs at_least or at_most")
        return self


class GatePolicy(Record):
    """When a challenger may take the champion's place."""

    metric: str
    """The metric that is compared."""
    min_gain: float = 0.0
    """By how much the challenger must be better; negative: by how much it may be worse."""
    bounds: tuple[MetricBound, ...] = ()


class PublishedResult(Record):
    """What others reached on the same protocol, to stand beside our own numbers."""

    estimator: str
    metrics: Mapping[str, float]


class Model(Record):
    """Everything about one model that a person decides."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    label_table: str
    """The raw table, qualified, whose rows are the examples: `churn.events`."""
    label: str
    """Its column with 0 or 1."""
    feature_service: str
    split: TimeSplit
    estimators: Mapping[str, Estimator]
    default_estimator: str
    metrics: tuple[Metric, ...] = (RocAuc(), AveragePrecision(), LogLoss(), BrierScore())
    primary_metric: str
    leak_alarm: LeakAlarm | None = None
    gate: GatePolicy
    serving: ServingPolicy = ServingPolicy()
    published: tuple[PublishedResult, ...] = ()
    published_source: str | None = None
    published_tolerance: float = 0.01

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        split_name(self.label_table)
        names = [metric.name for metric in self.metrics]
        if len(set(names)) < len(names):
            raise ValueError(f"two metrics share a name: {', '.join(names)}")
        alarm = (self.leak_alarm.metric,) if self.leak_alarm else ()
        bounds = tuple(bound.metric for bound in self.gate.bounds)
        for metric in (self.primary_metric, self.gate.metric, *alarm, *bounds):
            if metric not in names:
                raise DeclarationError(str(unknown_name(f"metric of {self.name}", metric, names)))
        if self.leak_alarm and not self.higher_is_better(self.leak_alarm.metric):
            raise ValueError(
                f"the leak alarm looks at {self.leak_alarm.metric}, where lower is better: its "
                "maximum would let every leak through"
            )
        self.estimator(self.default_estimator)
        for result in self.published:
            self.estimator(result.estimator)
        return self

    @property
    def use_case(self) -> str:
        """The use case that the model belongs to."""
        return split_name(self.label_table)[0]

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns, beside features and label, that the split and the metrics look at."""
        groups = [m.group for m in self.metrics if isinstance(m, TopGroupsPrecision)]
        if self.split.drop_known_positive_groups:
            groups.append(self.split.drop_known_positive_groups)
        return tuple(dict.fromkeys(groups))

    def rank(self, metrics: Mapping[str, float]) -> float:
        """Give a number that is the higher, the better the metrics are by the primary one."""
        value = metrics[self.primary_metric]
        return value if self.higher_is_better(self.primary_metric) else -value

    def higher_is_better(self, metric: str) -> bool:
        """Say which way a declared metric points."""
        return next(m.higher_is_better for m in self.metrics if m.name == metric)

    def estimator(self, name: str | None = None) -> Estimator:
        """Give the estimator of that name, or the default one.

        Raises:
            NotFoundError: no estimator has that name; the nearest is offered.
        """
        chosen = name or self.default_estimator
        if chosen not in self.estimators:
            raise unknown_name(f"estimator of {self.name}", chosen, self.estimators)
        return self.estimators[chosen]


def load_model(settings: Settings, use_case: str) -> Model:
    """Import the one `Model` that `feature_repo/<use_case>/model.py` declares.

    Raises:
        NotFoundError: there is no such use case, or it has no model.py.
        DeclarationError: the file declares no model, or more than one, or a wrong one.
    """
    module = import_declarations(settings, use_case, "model")
    models = list(declared(module, Model))
    if len(models) != 1:
        raise DeclarationError(
            f"{use_case}/model.py declares {len(models)} models",
            allowed="exactly one module-level Model(...)",
        )
    if models[0].use_case != use_case:
        raise DeclarationError(
            f"{use_case}/model.py takes its labels from {models[0].label_table!r}",
            allowed=f"a table of its own use case: {use_case}.<table>",
        )
    return models[0]
