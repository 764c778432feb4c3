"""Fits on each fold of a split and scores the fold's test rows by what came out of the fit."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.handover import Background
from penstock.progress import Progress
from penstock.records import Record
from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.background import draw_background
from penstock.training.declarations import Fold, Model
from penstock.training.estimators.base import Fitted, Labels, Scaled, Scores
from penstock.training.fold_rows import cut
from penstock.training.preprocessing import Preprocessing
from penstock.training.row_sources import RowSource, source_of
from penstock.training.validation import Examples, check_labels, to_examples

EventTimes = npt.NDArray[np.datetime64]


class Counts(Record):
    """How many examples there are; positives only where labels are classes."""

    num_training_rows: int
    """Of the last fold: each has all that the one before had."""
    num_training_positives: int | None
    num_test_rows: int
    """Of all folds together."""
    num_test_positives: int | None


@dataclass(frozen=True, kw_only=True)
class FoldSides:
    """Both sides of one fold as arrays, and what the training side says of the features."""

    scaling: Preprocessing
    train: Examples
    """In order of time: what is held out to stop early has to be the newest."""
    train_times: EventTimes
    """[n], of the training rows' events."""
    test: Examples
    """In the frame's order."""


@dataclass(frozen=True, kw_only=True)
class FittedFolds:
    """The last fold's fit, and every test row with the score of its own fold."""

    scaling: Preprocessing
    fitted: Fitted
    graph: bytes
    """The one ONNX graph of both."""
    test: Examples
    scores: Scores
    fit_s: float
    """All fits together."""
    guesses: Scores | None
    """The model's baseline for each test row; the mean training label where it is missing."""
    background: Background | None = None
    """Of the last fold's training rows, where the model gives explanations."""


def count_folds(
    frame: pl.DataFrame | RowSource,
    model: Model,
    *,
    event_time: str,
    folds: Sequence[Fold] | None = None,
) -> Counts:
    """Count the examples, and refuse before the first fit what a later one could not take.

    Args:
        frame: the training set's rows.
        model: whose label and task.
        event_time: the column of event times.
        folds: None: those of the model's split.

    Raises:
        TrainingDataError: a side of a fold has no rows, or labels that cannot be trained on.
    """
    light = source_of(frame).light
    train_labels: Labels = np.empty(0)
    test_labels = []
    for fold in model.split.folds() if folds is None else folds:
        sides = cut(light, fold, event_time=event_time, label=model.label)
        train_labels, labels = (
            check_labels(rows, label=model.label, side=side, task=model.task)
            for rows, side in zip(sides, ("training", "test"), strict=True)
        )
        test_labels.append(labels)
    tests = np.concatenate(test_labels)
    is_binary = model.task == "binary"
    return Counts(
        num_training_rows=len(train_labels),
        num_training_positives=int(train_labels.sum()) if is_binary else None,
        num_test_rows=len(tests),
        num_test_positives=int(tests.sum()) if is_binary else None,
    )


def sides_of(
    frame: pl.DataFrame | RowSource,
    model: Model,
    fold: Fold,
    *,
    event_time: str,
    feature_names: tuple[str, ...],
) -> FoldSides:
    """Cut a fold out of the frame, and fit the preprocessing on its training rows.

    Args:
        frame: the training set's rows.
        model: whose label, task and preprocessing.
        fold: which rows train and which test.
        event_time: the column of event times.
        feature_names: the order of the features.

    Raises:
        TrainingDataError: a side of the fold cannot be trained or tested on.
    """
    source = source_of(frame)
    rows, tested = cut(source.light, fold, event_time=event_time, label=model.label)
    rows = rows.sort(event_time, maintain_order=True)
    train = Examples(
        # First: what cannot be trained on is not laid out.
        labels=check_labels(rows, label=model.label, side="training", task=model.task),
        features=source.matrix(rows, feature_names=feature_names, side="training"),
        frame=rows,
    )
    test = to_examples(
        source.whole(tested),
        feature_names=feature_names,
        label=model.label,
        side="test",
        task=model.task,
    )
    return FoldSides(
        scaling=preprocessing.fit(
            train.features, feature_names=feature_names, policy=model.preprocessing
        ),
        train=train,
        train_times=rows[event_time].to_numpy(),
        test=test,
    )


def fit_folds(
    frame: pl.DataFrame | RowSource,
    model: Model,
    *,
    event_time: str,
    feature_names: tuple[str, ...],
    fit: Callable[[int, Scaled, Labels, EventTimes], Fitted],
    progress: Progress,
    folds: Sequence[Fold] | None = None,
) -> FittedFolds:
    """Fit and score one fold after the other.

    Args:
        frame: the training set's rows.
        model: whose label, task, preprocessing and baseline.
        event_time: the column of event times.
        feature_names: the order of the features.
        fit: fits the fold of that number on filled and standardised features, labels and event
            times, all in order of time.
        progress: told of each fit, where there are several.
        folds: None: those of the model's split.

    Raises:
        TrainingDataError: a fold cannot be trained on.
    """
    source = source_of(frame)
    policies = model.split.folds() if folds is None else folds
    tests, scores, guesses = [], [], []
    background = None
    fit_s = 0.0
    for number, policy in enumerate(policies):
        if len(policies) > 1:
            progress("fits", number, len(policies), unit="fits")
        sides = sides_of(source, model, policy, event_time=event_time, feature_names=feature_names)
        scaling, train, test = sides.scaling, sides.train, sides.test
        if model.serving.explanations:
            # Before the scaling, which uses the features up.
            background = draw_background(train.features, feature_names=feature_names)
        started_s = time.monotonic()
        scaled = source.scaled(scaling, train.features)
        fitted = fit(number, scaled, train.labels, sides.train_times)
        fit_s += time.monotonic() - started_s
        graph = bundle.assemble(scaling, fitted)
        # What is measured is what will be served: the graph, on the features as they come.
        scores.append(load_scorer(graph)(test.features))
        tests.append(test)
        if model.baseline:
            guess = test.features[:, feature_names.index(model.baseline)]
            guesses.append(np.where(np.isnan(guess), train.labels.mean(), guess))
    return FittedFolds(
        scaling=scaling,
        fitted=fitted,
        graph=graph,
        test=Examples(
            features=np.concatenate([test.features for test in tests]),
            labels=np.concatenate([test.labels for test in tests]),
            frame=pl.concat([test.frame for test in tests]),
        ),
        scores=np.concatenate(scores),
        fit_s=fit_s,
        guesses=np.concatenate(guesses) if guesses else None,
        background=background,
    )
