"""What a search found, as records: for the command, the pictures and the model version."""

from collections.abc import Mapping, Sequence
from typing import Any

from penstock.records import Record
from penstock.training.declarations import Ensemble
from penstock.training.search.ledger import State, Trial
from penstock.training.search_declarations import Choice, Floats, Ints, Search
from penstock.training.single_estimators import SingleEstimator


class TrialSummary(Record):
    """One trial."""

    number: int
    estimator: str
    params: dict[str, Any]
    state: State
    num_folds: int
    """How many it was measured on."""
    value: float | None
    """The metric's mean over them."""
    deviation: float | None
    """The metric's standard deviation over them; None where there are fewer than two."""
    fit_s: float
    reason: str | None


class Axis(Record):
    """One searched field, for a picture of all of them side by side."""

    name: str
    low: float | None = None
    high: float | None = None
    log: bool = False
    options: tuple[str, ...] | None = None
    """In place of low and high, where it is a choice."""


class LeaderboardEntry(Record):
    """One line of the leaderboard."""

    name: str
    metrics: dict[str, float]
    """Means over the folds."""
    low: float
    high: float
    """The interval of the metric that decides, by bootstrap of each fold's test rows."""
    fit_s: float
    """Seconds to fit on one fold, all members together."""
    latency_us: float
    """Microseconds for one row, the median of many, preprocessing included."""
    told: str
    """What it is made of."""


class Tuning(Record):
    """A search that is over; its training set is its left neighbour."""

    run_id: str
    request_id: str
    model: str
    use_case: str
    metric: str
    higher_is_better: bool
    training_set_id: str
    table_versions: dict[str, int]
    kind_of_folds: str
    folds: tuple[dict[str, str], ...]
    """The stretches of time of each, all before the model's test begins."""
    seed: int
    stopping: str
    trials: tuple[TrialSummary, ...]
    best: int
    """The number of the best trial."""
    reason: str
    """Why it ended."""
    elapsed_s: float
    cpu_s: float
    money: float
    currency: str
    pictures: tuple[str, ...]
    ensemble: Ensemble | None = None
    """What a search of families ends with; None: it was a search of one estimator."""
    leaderboard: tuple[LeaderboardEntry, ...] = ()
    tuned: SingleEstimator | None = None
    """What a population ends with: a net and the stages of its line."""

    @property
    def winner(self) -> TrialSummary:
        """The best trial."""
        return self.trials[self.best]


def summarise(trials: Sequence[Trial], metric: str) -> tuple[TrialSummary, ...]:
    """Describe every trial."""
    return tuple(
        TrialSummary(
            number=trial.number,
            estimator=trial.estimator,
            params=trial.params,
            state=trial.state,
            num_folds=len(trial.folds),
            value=trial.value(metric),
            deviation=_deviation(trial, metric),
            fit_s=round(trial.fit_s, 3),
            reason=trial.reason,
        )
        for trial in trials
    )


def _deviation(trial: Trial, metric: str) -> float | None:
    from statistics import stdev

    values = [fold.metrics[metric] for fold in trial.folds.values()]
    return stdev(values) if len(values) > 1 else None


def axes(searches: Mapping[str, Search]) -> list[Axis]:
    """Give an axis for each searched field; of several estimators with the estimator's name."""
    several = len(searches) > 1
    return [
        _axis(f"{estimator}.{field}" if several else field, dimension)
        for estimator, search in searches.items()
        for field, dimension in search.dimensions.items()
    ]


def _axis(name: str, dimension: Ints | Floats | Choice) -> Axis:
    if isinstance(dimension, Choice):
        return Axis(name=name, options=tuple(map(as_text, dimension.options)))
    return Axis(name=name, low=dimension.low, high=dimension.high, log=dimension.log)


def as_text(value: Any) -> str:
    """Write a value as a table shows it."""
    if isinstance(value, tuple | list):
        return "-".join(map(str, value))
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parameters_as_text(params: Mapping[str, Any]) -> str:
    """Write parameters on one line."""
    return ", ".join(f"{name} {as_text(value)}" for name, value in params.items())


def place_on(axis: Axis, trial: TrialSummary) -> float | None:
    """Give where a trial crosses an axis, from 0 to 1; None: it has no such field."""
    import math

    estimator, _, field = axis.name.rpartition(".")
    if field not in trial.params or estimator not in ("", trial.estimator):
        return None
    value = trial.params[field]
    if axis.options is not None:
        return axis.options.index(as_text(value)) / max(len(axis.options) - 1, 1)
    low, high = axis.low or 0.0, axis.high or 0.0
    if axis.log:
        low, high, value = math.log(low), math.log(high), math.log(value)
    return (float(value) - low) / (high - low)
