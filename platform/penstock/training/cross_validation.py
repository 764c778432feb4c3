"""Evaluates an estimator on folds: each is fitted and scored by itself, side by side on Ray.

An estimator that one task can fit is fitted by a task for each fold, as many at a time as there are
cores. What only Ray Train can fit (several workers, a GPU) brings workers of its own, so its folds
are fitted one after the other from this process.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.cluster.tasks import RunOnRay, RunTasks, run_here, runner
from penstock.progress import silent
from penstock.training.bootstrap import Values, bounds, resample
from penstock.training.declarations import Bootstrap, Estimator, Fold, Model
from penstock.training.estimators import families
from penstock.training.estimators.base import FitJob, Fitted, Labels, Scaled
from penstock.training.fold_declarations import delay_within
from penstock.training.folds import Counts, EventTimes, count_folds, fit_folds
from penstock.training.metrics import evaluate


@dataclass(frozen=True, kw_only=True)
class FoldResult:
    """What one fold says of an estimator."""

    number: int
    """From 1, in the order of the folds."""
    counts: Counts
    metrics: dict[str, float]
    baseline: dict[str, float]
    """What the model's baseline reaches on the same rows; empty where it has none."""
    resampled: dict[str, Values]
    """Each metric on resamples of the fold's test; empty where none were asked for."""
    fit_s: float


@dataclass(frozen=True, kw_only=True)
class FoldScores:
    """What all folds together say of an estimator."""

    folds: tuple[FoldResult, ...]

    def values(self, metric: str) -> npt.NDArray[np.float64]:
        """Give the metric of each fold."""
        return np.array([fold.metrics[metric] for fold in self.folds])

    def mean(self, metric: str) -> float:
        """Give the metric's mean over the folds."""
        return float(self.values(metric).mean())

    def deviation(self, metric: str) -> float | None:
        """Give the metric's standard deviation over the folds; None where there is one fold."""
        values = self.values(metric)
        return float(values.std(ddof=1)) if len(values) > 1 else None

    def interval(self, metric: str, *, level: float) -> tuple[float, float]:
        """Give the interval of the mean over the folds, were their tests drawn again.

        The folds are what they are: how much the metric changes with time says the deviation.
        """
        drawn = [fold.resampled[metric] for fold in self.folds]
        # Of a test of millions of rows fewer resamples are drawn.
        num_resamples = min(len(values) for values in drawn)
        return bounds(np.mean([values[:num_resamples] for values in drawn], axis=0), level)

    @property
    def fit_s(self) -> float:
        """Seconds of all fits, whether or not they ran side by side."""
        return sum(fold.fit_s for fold in self.folds)


def each_fold(
    frame: pl.DataFrame,
    model: Model,
    config: Estimator,
    *,
    event_time: str,
    feature_names: tuple[str, ...],
    folds: Sequence[Fold],
    job: FitJob,
    numbers: Sequence[int] | None = None,
    bootstrap: Bootstrap | None = None,
    run: RunTasks | None = None,
) -> Iterator[FoldResult]:
    """Give each fold's result as it is there, in the order of the folds.

    Whoever has seen enough closes the iterator: the folds that still run are ended.

    Args:
        frame: the training set's rows.
        model: its label, task, preprocessing, metrics and baseline.
        config: the estimator, one of the model's or any other of its task.
        event_time: the column of event times.
        feature_names: the order of the features.
        folds: which rows train and which test.
        numbers: the folds' own, where they are not all of them; None: from 1.
        job: where checkpoints go, and what a user's own module is imported from; each fold adds its
            number to the name.
        bootstrap: how each fold's test is drawn again for intervals; None: it is not.
        run: where the folds' tasks run; None: on the Ray that this process is connected to, else
            here.

    Raises:
        TrainingDataError: a fold cannot be trained on.
    """
    num_cpus = families.cpus_of_one_task(config)
    if num_cpus is None:
        run = run_here
    run = run or runner(num_cpus=num_cpus or 1)
    # Once into the store, not once for each task.
    shared = _put(frame) if isinstance(run, RunOnRay) else frame
    named = zip(numbers or range(1, len(folds) + 1), folds, strict=True)
    calls = [{"frame": shared, "number": number, "fold": fold} for number, fold in named]
    evaluate_fold = partial(
        _evaluate,
        model=model,
        config=config,
        event_time=event_time,
        feature_names=feature_names,
        job=job,
        bootstrap=bootstrap,
    )
    yield from run(evaluate_fold, calls)


def _evaluate(
    frame: Any,
    *,
    model: Model,
    config: Estimator,
    event_time: str,
    feature_names: tuple[str, ...],
    job: FitJob,
    bootstrap: Bootstrap | None,
    number: int,
    fold: Fold,
) -> FoldResult:
    rows = _get(frame)
    counts = count_folds(rows, model, event_time=event_time, folds=(fold,))

    def fit(_: int, scaled: Scaled, labels: Labels, times: EventTimes) -> Fitted:
        mine = replace(
            job,
            name=f"{job.name}-{number}",
            event_times=times,
            label_delay=delay_within(fold),
        )
        alone = families.cpus_of_one_task(config) is not None
        return (families.fit_here if alone else families.fit)(config, scaled, labels, mine)

    fitted = fit_folds(
        rows,
        model,
        event_time=event_time,
        feature_names=feature_names,
        fit=fit,
        progress=silent,
        folds=(fold,),
    )
    test = fitted.test
    guesses = fitted.guesses
    return FoldResult(
        number=number,
        counts=counts,
        metrics=evaluate(model.metrics, test, fitted.scores),
        baseline={} if guesses is None else evaluate(model.metrics, test, guesses),
        resampled={}
        if bootstrap is None
        else resample(model.metrics, test, fitted.scores, bootstrap, stream=number),
        fit_s=fitted.fit_s,
    )


def _put(frame: pl.DataFrame) -> Any:
    import ray

    return ray.put(frame)


def _get(frame: Any) -> pl.DataFrame:
    if isinstance(frame, pl.DataFrame):
        return frame
    rows: pl.DataFrame = sys.modules["ray"].get(frame)
    return rows
