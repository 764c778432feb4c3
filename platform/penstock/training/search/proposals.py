"""Proposes the next trial from those before it, by Optuna's TPE; Optuna is imported here alone.

A proposal follows from the space, the seed and the recorded trials, and from nothing else: Optuna
keeps no state of its own between two, so a search that was killed goes on as if it had not been.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from optuna.trial import FrozenTrial, TrialState, create_trial

from penstock.training.search.ledger import State, Trial
from penstock.training.search_declarations import Choice, Floats, Ints, Search

_ESTIMATOR = "estimator"
_RANDOM_TRIALS = 8
_STATES: Mapping[State, TrialState] = {
    "running": TrialState.RUNNING,
    "complete": TrialState.COMPLETE,
    "stopped": TrialState.PRUNED,
    "failed": TrialState.FAIL,
}


@dataclass(frozen=True, kw_only=True)
class Space:
    """What is searched: one estimator's fields, or those of several and the choice among them."""

    searches: Mapping[str, Search]
    declared: Mapping[str, Mapping[str, Any]]
    """Each estimator's values as declared: tried first, moved into the space where outside."""
    seed: int
    metric: str
    higher_is_better: bool


def propose(space: Space, trials: Sequence[Trial]) -> tuple[str, dict[str, Any]]:
    """Give the next trial's estimator and values.

    The first trials are the declared estimators themselves: where these lie in the space, what is
    found is never worse than what is declared, on the folds that decide.
    """
    first = _declared(space, len(trials))
    if first is not None:
        return first
    return _ask(space, trials)


def _declared(space: Space, number: int) -> tuple[str, dict[str, Any]] | None:
    if number >= len(space.searches):
        return None
    name = list(space.searches)[number]
    return name, as_declared(space, name)


def as_declared(space: Space, name: str) -> dict[str, Any]:
    """Give an estimator's searched values as declared, moved into the space where outside."""
    values = space.declared[name]
    return {
        field: _within(dimension, values[field])
        for field, dimension in space.searches[name].dimensions.items()
    }


def _within(dimension: Ints | Floats | Choice, value: Any) -> Any:
    """Give the value, or the nearest in the space; no limit at all is nearest to the highest."""
    if isinstance(dimension, Choice):
        return value if value in dimension.options else dimension.options[0]
    if value is None:
        return dimension.high
    return dimension.nearest(value)


def _ask(space: Space, trials: Sequence[Trial]) -> tuple[str, dict[str, Any]]:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    several = len(space.searches) > 1
    sampler = optuna.samplers.TPESampler(
        seed=_seed(space.seed, len(trials)),
        # Fields of one estimator are drawn together; those of several have too little in common.
        multivariate=not several,
        # Trials beside this one count as bad ones, so that they are not tried twice.
        constant_liar=True,
        n_startup_trials=_RANDOM_TRIALS * len(space.searches),
    )
    study = optuna.create_study(
        direction="maximize" if space.higher_is_better else "minimize", sampler=sampler
    )
    study.add_trials([_frozen(space, trial) for trial in trials])
    asked = study.ask()
    name = next(iter(space.searches))
    if several:
        name = str(asked.suggest_categorical(_ESTIMATOR, list(space.searches)))
    values = {
        field: _suggest(asked, _key(space, name, field), dimension)
        for field, dimension in space.searches[name].dimensions.items()
    }
    return name, values


def _suggest(asked: optuna.Trial, key: str, dimension: Ints | Floats | Choice) -> Any:
    match dimension:
        case Ints():
            return asked.suggest_int(key, dimension.low, dimension.high, log=dimension.log)
        case Floats():
            return asked.suggest_float(key, dimension.low, dimension.high, log=dimension.log)
        case Choice():
            words = _words(dimension)
            return words[str(asked.suggest_categorical(key, list(words)))]


def _frozen(space: Space, trial: Trial) -> FrozenTrial:
    dimensions = space.searches[trial.estimator].dimensions
    distributions = {
        _key(space, trial.estimator, field): _distribution(d) for field, d in dimensions.items()
    }
    params = {
        _key(space, trial.estimator, field): _coded(dimension, trial.params[field])
        for field, dimension in dimensions.items()
    }
    if len(space.searches) > 1:
        distributions[_ESTIMATOR] = CategoricalDistribution(list(space.searches))
        params[_ESTIMATOR] = trial.estimator
    done = sorted(trial.folds)
    means = {}
    for count in range(1, len(done) + 1):
        values = [fold.metrics[space.metric] for fold in list(trial.folds.values())[:count]]
        means[count] = sum(values) / count
    return create_trial(
        state=_STATES[trial.state],
        value=trial.value(space.metric) if trial.state == "complete" else None,
        params=params,
        distributions=distributions,
        intermediate_values=means,
    )


def _key(space: Space, estimator: str, field: str) -> str:
    return f"{estimator}.{field}" if len(space.searches) > 1 else field


def _words(dimension: Choice) -> dict[str, Any]:
    """Name each option: Optuna takes no tuples, such as the sizes of layers."""
    return {repr(option): option for option in dimension.options}


def _coded(dimension: Ints | Floats | Choice, value: Any) -> Any:
    """Write a recorded value as Optuna knows it; a tuple was recorded as a list."""
    if not isinstance(dimension, Choice):
        return value
    return repr(tuple(value) if isinstance(value, list) else value)


def _distribution(dimension: Ints | Floats | Choice) -> BaseDistribution:
    match dimension:
        case Ints():
            return IntDistribution(dimension.low, dimension.high, log=dimension.log)
        case Floats():
            return FloatDistribution(dimension.low, dimension.high, log=dimension.log)
        case Choice():
            return CategoricalDistribution(list(_words(dimension)))


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
