"""Leads a search: proposes trials, has their folds measured, gives up the hopeless, keeps budget.

All that it knows stands in the ledger; the decisions are pure functions of that.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from penstock.durations import as_duration
from penstock.errors import PenstockError, TrainingDataError, UserError
from penstock.training.search.budget import Budget
from penstock.training.search.ledger import Begun, Closed, Ended, Ledger, Measured, Outcome, Trial
from penstock.training.search.measuring import Measurement
from penstock.training.search.population import Population, propose_member
from penstock.training.search.proposals import Space, as_declared, propose
from penstock.training.search.stopping import Rule, should_stop
from penstock.training.search.tasks import Done, Tasks

_POLL_S = 0.5
_MOST_FAILURES_AT_FIRST = 3
Start = Callable[[Trial, int], None]
"""Begins the task of a trial on the fold of that number, in the tasks of the search; raises a
UserError where the trial's values contradict each other."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a search is to do."""

    space: Space
    folds: Sequence[int]
    """Their numbers, in the order in which each trial visits them."""
    budget: Budget
    rule: Rule
    money_per_cpu_s: float
    num_cpus: Mapping[str, int]
    """By estimator: CPUs of one fit."""
    population: Population | None = None
    """Trials are members of generations, each gone on from one before it."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Who hears of a search."""

    changed: Callable[[Sequence[Trial]], None] = lambda _trials: None
    """A trial began, was measured or ended."""
    ended: Callable[[Trial], None] = lambda _trial: None
    """A trial ended; may be told twice of the same, after a restart."""
    measured: Callable[[int, int, Measurement], None] = lambda _trial, _fold, _found: None
    """A fold's scores, before the ledger says that they are there."""


class Controller:
    """One attempt at a search."""

    def __init__(
        self, plan: Plan, ledger: Ledger, tasks: Tasks, start: Start, watch: Watch | None = None
    ) -> None:
        self._plan = plan
        self._ledger = ledger
        self._tasks = tasks
        self._start = start
        self._watch = watch or Watch()
        self._in_flight: set[tuple[int, int]] = set()
        self._begun_s = time.monotonic()
        self._before_s = ledger.elapsed_s

    def run(self) -> str:
        """Search until the budget ends it; give the reason.

        Raises:
            UserError: the budget ended before one trial was measured on every fold.
            TrainingDataError: the first trials all failed.
        """
        if self._ledger.closed is not None:
            return self._ledger.closed
        for trial in self._ledger.trials:
            self._settle(trial)
        try:
            reason = self._search()
        finally:
            self._tasks.cancel()
        self._check_found(reason)
        self._ledger.append(Closed(reason=reason, at_s=self._now_s()))
        return reason

    def _search(self) -> str:
        while True:
            over = self._over()
            if over is not None:
                return over
            while len(self._in_flight) < self._tasks.num_slots and self._begin_one():
                pass
            if not self._in_flight:
                return f"all {len(self._ledger.trials)} trials are done"
            left_s = self._plan.budget.left_s(self._now_s())
            done = self._tasks.wait(_POLL_S if left_s is None else min(left_s, _POLL_S))
            if done is not None:
                self._take(done)

    def _over(self) -> str | None:
        spent = self._ledger.cpu_s * self._plan.money_per_cpu_s
        return self._plan.budget.spent(time_s=self._now_s(), money=spent)

    def _now_s(self) -> float:
        return self._before_s + time.monotonic() - self._begun_s

    def _begin_one(self) -> bool:
        """Start the next fold of a trial that waits for one, else a new trial."""
        for trial in self._ledger.trials:
            if trial.state == "running" and (fold := self._next_fold(trial)) is not None:
                return self._begin(trial, fold)
        if self._plan.budget.is_full(len(self._ledger.trials)):
            return False
        proposed = self._propose()
        if proposed is None:
            return False
        name, params = proposed
        number = len(self._ledger.trials)
        self._ledger.append(Begun(trial=number, estimator=name, params=params, at_s=self._now_s()))
        return self._begin(self._ledger.trials[number], self._plan.folds[0])

    def _propose(self) -> tuple[str, dict[str, Any]] | None:
        """Give the next trial, or None: it hangs on one that is still running."""
        space, trials = self._plan.space, self._ledger.trials
        if self._plan.population is None:
            return propose(space, trials)
        ((name, search),) = space.searches.items()
        return propose_member(
            self._plan.population,
            name,
            search,
            as_declared(space, name),
            trials,
            metric=space.metric,
            higher_is_better=space.higher_is_better,
        )

    def _next_fold(self, trial: Trial) -> int | None:
        flying = {fold for number, fold in self._in_flight if number == trial.number}
        # Where trials may be stopped, a fold is worth its time only after the one before it.
        if flying and self._plan.rule != "none":
            return None
        missing = (f for f in self._plan.folds if f not in trial.folds and f not in flying)
        return next(missing, None)

    def _begin(self, trial: Trial, fold: int) -> bool:
        try:
            self._start(trial, fold)
        except UserError as error:
            self._end(trial, "failed", str(error))
            return True
        self._in_flight.add((trial.number, fold))
        return True

    def _take(self, done: Done) -> None:
        number, fold = done.key
        self._in_flight.discard((number, fold))
        trial = self._ledger.trials[number]
        if trial.state != "running":
            return
        if done.error is not None:
            self._fail(trial, done.error)
            return
        found: Measurement = done.result
        self._watch.measured(number, fold, found)
        self._ledger.append(
            Measured(
                trial=number,
                fold=fold,
                metrics=found.metrics,
                fit_s=round(found.fit_s, 4),
                cpu_s=round(found.wall_s * self._plan.num_cpus[trial.estimator], 4),
                at_s=self._now_s(),
            )
        )
        self._settle(trial)
        self._watch.changed(self._ledger.trials)

    def _settle(self, trial: Trial) -> None:
        """End the trial if its folds say so, as far as that was not done."""
        if trial.state != "running":
            self._watch.ended(trial)
            return
        if all(fold in trial.folds for fold in self._plan.folds):
            self._end(trial, "complete", None)
            return
        # What is declared is measured whole: everything found stands beside it.
        if not trial.folds or trial.number < len(self._plan.space.searches):
            return
        why = should_stop(
            self._plan.rule,
            trial,
            self._ledger.trials,
            folds=self._plan.folds,
            metric=self._plan.space.metric,
            higher_is_better=self._plan.space.higher_is_better,
        )
        if why is not None:
            self._end(trial, "stopped", why)

    def _fail(self, trial: Trial, error: Exception) -> None:
        cause = _cause(error)
        if not isinstance(cause, UserError):
            raise PenstockError(
                f"trial {trial.number} of {trial.estimator} failed: {cause}",
                next_step="repeat the command with the same --request-id: what is measured stays",
            ) from error
        self._end(trial, "failed", cause.found)
        states = [each.state for each in self._ledger.trials]
        if "complete" not in states and states.count("failed") >= _MOST_FAILURES_AT_FIRST:
            raise TrainingDataError(
                f"the first {states.count('failed')} trials failed, the last by: {cause.found}",
                allowed=cause.allowed,
                next_step=cause.next_step or "narrow the search in model.py",
            )

    def _end(self, trial: Trial, state: Outcome, reason: str | None) -> None:
        self._ledger.append(Ended(trial=trial.number, state=state, reason=reason))
        self._watch.ended(trial)

    def _check_found(self, reason: str) -> None:
        trials = self._ledger.trials
        if any(trial.state == "complete" for trial in trials):
            return
        measured = [fold.fit_s for trial in trials for fold in trial.folds.values()]
        each_s = sum(measured) / len(measured) * len(self._plan.folds) if measured else None
        took = f"; a trial takes about {as_duration(each_s)} of fitting" if each_s else ""
        failed = next((trial.reason for trial in trials if trial.state == "failed"), None)
        told = f"; a trial failed: {failed}" if failed else ""
        raise UserError(
            f"{reason} before one trial was measured on all {len(self._plan.folds)} folds"
            f"{took}{told}",
            next_step="give it more --time or --cost, or fewer --folds; with the same "
            "--request-id it goes on where it stopped",
        )


def _cause(error: BaseException) -> BaseException:
    """Find what a task raised beneath Ray's wrapper of it."""
    inner = getattr(error, "cause", None) or error.__cause__
    return _cause(inner) if isinstance(inner, BaseException) and inner is not error else error


def best(trials: Sequence[Trial], *, metric: str, higher_is_better: bool) -> list[Trial]:
    """Give the trials that were measured on every fold, the best first; of equals the earlier."""
    sign = -1 if higher_is_better else 1
    complete = [trial for trial in trials if trial.state == "complete"]
    return sorted(complete, key=lambda trial: (sign * (trial.value(metric) or 0.0), trial.number))
