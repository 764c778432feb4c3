"""Fits and scores one set of parameters on one fold: what a task of a search does.

The folds are cut and prepared once for the whole search; a task takes arrays and gives numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.training import preprocessing
from penstock.training.declarations import (
    Estimator,
    Metric,
    Model,
    PreprocessingPolicy,
    TimeSplit,
)
from penstock.training.estimators.base import FitJob, Labels, Scaled
from penstock.training.estimators.families import fit_native
from penstock.training.folds import sides_of
from penstock.training.metrics import evaluate
from penstock.training.preprocessing import Preprocessing
from penstock.training.search.population import Trail
from penstock.training.validation import DAY_COLUMN, Examples


@dataclass(frozen=True, kw_only=True)
class PreparedFold:
    """One fold as arrays, ready for any estimator."""

    scaling: Preprocessing
    train: Scaled
    """[n, P], filled and scaled by what the training rows say."""
    train_labels: Labels
    job: FitJob
    """When the training rows' events were, for early stopping."""
    test: Scaled
    test_rows: Examples
    """Their labels, and what the metrics look at beside them; no features."""


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """What one fold says of one set of parameters."""

    metrics: dict[str, float]
    scores: npt.NDArray[np.float32]
    """[n] of the fold's test rows."""
    fit_s: float
    wall_s: float
    """The whole of it, fit and scores."""


def prepare(
    frame: pl.DataFrame,
    model: Model,
    fold: TimeSplit,
    *,
    event_time: str,
    feature_names: tuple[str, ...],
    job: FitJob,
) -> PreparedFold:
    """Cut a fold out of the frame and prepare its features.

    Raises:
        TrainingDataError: a side of the fold cannot be trained or tested on.
    """
    sides = sides_of(frame, model, fold, event_time=event_time, feature_names=feature_names)
    scaling, train, test = sides.scaling, sides.train, sides.test
    looked_at = [name for name in (DAY_COLUMN, *model.group_columns) if name in test.frame.columns]
    return PreparedFold(
        scaling=scaling,
        train=scaling.apply(train.features),
        train_labels=train.labels,
        job=replace(job, event_times=sides.train_times, label_delay=fold.label_delay),
        test=scaling.apply(test.features),
        test_rows=Examples(
            features=np.empty((test.num_rows, 0)),
            labels=test.labels,
            frame=test.frame.select(looked_at),
        ),
    )


def measure(
    fold: PreparedFold,
    config: Estimator,
    metrics: Sequence[Metric],
    policy: PreprocessingPolicy | None = None,
    trail: Trail | None = None,
) -> Measurement:
    """Fit on the fold's training rows and score its test rows.

    Args:
        fold: the rows.
        config: the estimator; one task must be able to fit it.
        metrics: what is measured.
        policy: what becomes of the prepared columns once more before the estimator meets them.
        trail: where a member of a population keeps its checkpoints.

    Raises:
        TrainingDataError: the estimator cannot be fitted on these rows, or its scores are no
            finite numbers.
    """
    started_s = time.monotonic()
    train, test = fold.train, fold.test
    if policy is not None:
        names = tuple(f"column_{place}" for place in range(train.shape[1]))
        again = preprocessing.fit(train.astype(np.float64), feature_names=names, policy=policy)
        train, test = again.apply(train.astype(np.float64)), again.apply(test.astype(np.float64))
    job = fold.job
    if trail is not None:
        job = replace(job, keep_in=trail.own, begin_from=trail.parent)
    native = fit_native(config, train, fold.train_labels, job)
    fit_s = time.monotonic() - started_s
    scores = native.predict(test)
    return Measurement(
        metrics=evaluate(metrics, fold.test_rows, scores),
        scores=scores.astype(np.float32),
        fit_s=fit_s,
        wall_s=time.monotonic() - started_s,
    )
