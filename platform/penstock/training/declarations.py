"""What a use case declares about its model: label, split, estimators, metrics, gates, serving.

Everything here is frozen, typed and keyword-only, and imports no vendor: a declaration costs
nothing to load. A use case imports all of it from here.
"""

from collections.abc import Mapping
from typing import Self

from pydantic import Field, model_validator

from penstock.errors import DeclarationError, unknown_name
from penstock.handover import Int8 as Int8
from penstock.handover import ServingPolicy as ServingPolicy
from penstock.records import Declaration, Record
from penstock.settings import Settings
from penstock.training.card_declarations import IntendedUse as IntendedUse
from penstock.training.card_declarations import Slice as Slice
from penstock.training.card_declarations import extra_columns
from penstock.training.estimator_declarations import BoostingStop as BoostingStop
from penstock.training.estimator_declarations import DecisionTree as DecisionTree
from penstock.training.estimator_declarations import Ensemble as Ensemble
from penstock.training.estimator_declarations import Estimator as Estimator
from penstock.training.estimator_declarations import IsolationForest as IsolationForest
from penstock.training.estimator_declarations import KMeans as KMeans
from penstock.training.estimator_declarations import LightGBM as LightGBM
from penstock.training.estimator_declarations import LogisticRegression as LogisticRegression
from penstock.training.estimator_declarations import Loss as Loss
from penstock.training.estimator_declarations import Member as Member
from penstock.training.estimator_declarations import RandomForest as RandomForest
from penstock.training.estimator_declarations import Ridge as Ridge
from penstock.training.estimator_declarations import ScikitEstimator as ScikitEstimator
from penstock.training.estimator_declarations import Stage as Stage
from penstock.training.estimator_declarations import TorchMLP as TorchMLP
from penstock.training.estimator_declarations import TorchModule as TorchModule
from penstock.training.estimator_declarations import XGBoost as XGBoost
from penstock.training.fold_declarations import Fold as Fold
from penstock.training.fold_declarations import GroupFolds as GroupFolds
from penstock.training.fold_declarations import GroupTimeFolds as GroupTimeFolds
from penstock.training.fold_declarations import PrequentialFolds as PrequentialFolds
from penstock.training.fold_declarations import PurgedFolds as PurgedFolds
from penstock.training.fold_declarations import RandomFolds as RandomFolds
from penstock.training.fold_declarations import (
    Validation,
    derived_folds,
    groups_of,
    label_delay_of,
)
from penstock.training.metric_declarations import R2 as R2
from penstock.training.metric_declarations import AveragePrecision as AveragePrecision
from penstock.training.metric_declarations import Bootstrap as Bootstrap
from penstock.training.metric_declarations import BrierScore as BrierScore
from penstock.training.metric_declarations import CalibrationError as CalibrationError
from penstock.training.metric_declarations import FlaggedShare as FlaggedShare
from penstock.training.metric_declarations import LogLoss as LogLoss
from penstock.training.metric_declarations import MeanAbsoluteError as MeanAbsoluteError
from penstock.training.metric_declarations import MeanScore as MeanScore
from penstock.training.metric_declarations import Metric as Metric
from penstock.training.metric_declarations import RocAuc as RocAuc
from penstock.training.metric_declarations import RootMeanSquaredError as RootMeanSquaredError
from penstock.training.metric_declarations import Task as Task
from penstock.training.metric_declarations import TopGroupsPrecision as TopGroupsPrecision
from penstock.training.preprocessing_declarations import PreprocessingPolicy as PreprocessingPolicy
from penstock.training.search_declarations import Choice as Choice
from penstock.training.search_declarations import Floats as Floats
from penstock.training.search_declarations import Ints as Ints
from penstock.training.search_declarations import Search as Search
from penstock.training.search_declarations import check_searches
from penstock.training.split_declarations import RollingTimeSplit as RollingTimeSplit
from penstock.training.split_declarations import Split as Split
from penstock.training.split_declarations import TimeSplit as TimeSplit
from penstock.training.torch_declarations import EarlyStopping as EarlyStopping
from penstock.use_cases import declared, import_declarations, split_name


class LeakAlarm(Record):
    """A metric too good to be true means that the future leaked into the features."""

    metric: str = "average_precision"
    max_plausible: float | None = None
    """For a metric where higher is better."""
    min_plausible: float | None = None
    """For a metric where lower is better."""

    @model_validator(mode="after")
    def _check_has_one_side(self) -> Self:
        if (self.max_plausible is None) == (self.min_plausible is None):
            raise ValueError("a leak alarm needs max_plausible or min_plausible, one of them")
        return self

    def is_plausible(self, value: float) -> bool:
        """Say whether the metric can be honest."""
        if self.max_plausible is not None:
            return value <= self.max_plausible
        return self.min_plausible is not None and value >= self.min_plausible

    @property
    def bound(self) -> tuple[str, float]:
        """The last plausible value, after "at most" or "at least"."""
        if self.max_plausible is not None:
            return "at most", self.max_plausible
        return "at least", self.min_plausible or 0.0


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
    needs_approval: bool = False
    """Somebody other than who promotes it must have approved the version."""


class PublishedResult(Record):
    """What others reached on the same protocol, to stand beside our own numbers."""

    estimator: str
    metrics: Mapping[str, float]


class Model(Declaration):
    """Everything about one model that a person decides."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")
    label_table: str
    """The raw table, qualified, whose rows are the examples: `churn.events`."""
    label: str | None = None
    """Its column: 0 or 1, or a number where the estimators are for regression. Estimators that
    need none may do without; where they have one, only metrics look at it."""
    feature_service: str
    split: Split
    validation: Validation | None = None
    """The folds of `penstock train --folds`; None: derived from the split (see `folds`)."""
    preprocessing: PreprocessingPolicy = PreprocessingPolicy()
    estimators: Mapping[str, Estimator]
    default_estimator: str
    search: Mapping[str, Search] = {}
    """By estimator, what `penstock tune` may try of its fields."""
    metrics: tuple[Metric, ...] = (RocAuc(), AveragePrecision(), LogLoss(), BrierScore())
    primary_metric: str
    bootstrap: Bootstrap = Bootstrap()
    """How the metrics' intervals are found."""
    baseline: str | None = None
    """A feature that is itself a guess at a number: its metrics stand beside ours, and say what is
    reached with nothing learnt."""
    leak_alarm: LeakAlarm | None = None
    gate: GatePolicy
    serving: ServingPolicy = ServingPolicy()
    intended_use: IntendedUse | None = None
    limits: tuple[str, ...] = ()
    """What a person must know before relying on it, for the model card."""
    slices: tuple[Slice, ...] = ()
    """Parts of the test rows that the model card shows by themselves."""
    published: tuple[PublishedResult, ...] = ()
    published_source: str | None = None
    published_tolerance: float = 0.01
    published_on_folds: tuple[PublishedResult, ...] = ()
    """Means over folds, to stand beside those of `penstock train --folds`."""
    published_on_folds_source: str | None = None

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
        self.estimator(self.default_estimator)
        check_searches(self.search, self.estimators)
        for result in (*self.published, *self.published_on_folds):
            self.estimator(result.estimator)
        return self

    @model_validator(mode="after")
    def _check_leak_alarm(self) -> Self:
        alarm = self.leak_alarm
        if alarm and self.higher_is_better(alarm.metric) != (alarm.max_plausible is not None):
            better, side = (
                ("higher", "minimum")
                if self.higher_is_better(alarm.metric)
                else ("lower", "maximum")
            )
            raise ValueError(
                f"the leak alarm looks at {alarm.metric}, where {better} is better: its {side} "
                "would let every leak through"
            )
        return self

    @model_validator(mode="after")
    def _check_task(self) -> Self:
        parts = {f"the estimator {name}": each.task for name, each in self.estimators.items()}
        parts |= {f"the metric {metric.name}": metric.task for metric in self._own_metrics}
        if len(set(parts.values())) > 1:
            told = "; ".join(f"{part} is for {task}" for part, task in parts.items())
            raise ValueError(f"estimators and metrics are of different kinds: {told}")
        if self.task == "regression" and self.split.drop_known_positive_groups:
            raise ValueError("drop_known_positive_groups: a number as label has no positives")
        if self.task != "regression" and self.baseline:
            raise ValueError("baseline: no feature is a guess at a class; it is for regression")
        threshold = self.serving.decision_threshold
        if self.task == "binary" and threshold is not None and not 0 <= threshold <= 1:
            raise ValueError(f"decision_threshold is {threshold}, no probability from 0 to 1")
        return self

    @model_validator(mode="after")
    def _check_folds(self) -> Self:
        delay = label_delay_of(self.folds)
        if delay is not None and delay < self.split.label_delay:
            raise ValueError(
                f"validation has a label_delay of {delay}, the split one of "
                f"{self.split.label_delay}: its folds would train on labels that nobody knew"
            )
        return self

    @property
    def _own_metrics(self) -> tuple[Metric, ...]:
        """The metrics, without those of classes that check a fit without labels."""
        if self.task != "unsupervised" or self.label is None:
            return self.metrics
        return tuple(metric for metric in self.metrics if metric.task != "binary")

    @model_validator(mode="after")
    def _check_label(self) -> Self:
        if self.task != "unsupervised" and self.label is None:
            raise ValueError(f"label: estimators of {self.task} need one")
        if self.task == "unsupervised" and self.label is None and groups_of(self.split):
            raise ValueError("drop_known_positive_groups: without a label nothing is positive")
        return self

    @property
    def known_label(self) -> str:
        """The label, for what cannot be done without one.

        Raises:
            DeclarationError: there is none.
        """
        if self.label is None or self.task == "unsupervised":
            raise DeclarationError(
                f"the model {self.name} is trained without labels",
                allowed="a model that is trained on labels",
            )
        return self.label

    @property
    def task(self) -> Task:
        """What the label is, as the estimators say."""
        return self.estimator().task

    @property
    def use_case(self) -> str:
        """The use case that the model belongs to."""
        return split_name(self.label_table)[0]

    @property
    def folds(self) -> Validation:
        """The declared folds; else a rolling split's own, or the split moved back in time."""
        return self.validation or derived_folds(self.split)

    @property
    def group_columns(self) -> tuple[str, ...]:
        """The columns, beside features and label, that split, metrics and slices look at."""
        groups = [m.group for m in self.metrics if isinstance(m, TopGroupsPrecision)]
        groups += [*groups_of(self.split), *groups_of(self.folds), *extra_columns(self.slices)]
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
