"""Cuts the time before a model's test into folds, for what is decided before it is trained.

Whatever looks at labels to decide (features, parameters) must not have seen the test: the folds end
where the last label that is known at the test's start was earned.
"""

from datetime import datetime, timedelta
from typing import Literal

from penstock.errors import TrainingDataError
from penstock.records import Record
from penstock.training.declarations import Model, TimeSplit


class StudyFolds(Record):
    """Folds in order of time; each trains on one stretch and is measured on a later one."""

    kind: Literal["rolling", "expanding"]
    folds: tuple[TimeSplit, ...]

    @property
    def start(self) -> datetime:
        """The first moment that any fold looks at."""
        return self.folds[0].train_start_utc

    @property
    def end(self) -> datetime:
        """Where the last fold ends, itself left out."""
        return self.folds[-1].test_end_utc


def study_folds(model: Model, num_folds: int, first_event: datetime) -> StudyFolds:
    """Lay the folds before the model's test, the label's delay between the sides of each.

    Where the label table goes back far enough, each fold is the declared split, moved back by one
    test after the other (prequential validation: Dal Pozzolo et al., "Learned lessons in credit
    card fraud detection", 2014). Else the folds expand: all of the time is cut into equal stretches
    and each fold trains on everything before its own.

    Args:
        model: whose split declares the stretches and the delay.
        num_folds: how many.
        first_event: the label table's first event.

    Raises:
        TrainingDataError: the time before the test is too short for the label's delay.
    """
    split = model.split
    end = split.test_start_utc - split.label_delay
    test_length = split.test_end_utc - split.test_start_utc
    train_length = end - split.train_start_utc
    first_start = end - num_folds * test_length - split.label_delay - train_length
    if first_event <= first_start:
        starts = [end - (num_folds - number) * test_length for number in range(num_folds)]
        lengths = (train_length, test_length)
        return StudyFolds(kind="rolling", folds=tuple(_fold(model, s, *lengths) for s in starts))
    stretch = (end - first_event - split.label_delay) / (num_folds + 1)
    if stretch <= timedelta(0):
        raise TrainingDataError(
            f"the label table begins at {first_event:%Y-%m-%d %H:%M}, and the last label known at "
            f"the test's start is of {end:%Y-%m-%d %H:%M}: shorter than the labels' delay",
            allowed=f"more than {split.label_delay}",
            next_step="ingest earlier events, or move the test in model.py to a later time",
        )
    folds = []
    for number in range(num_folds):
        start = end - (num_folds - number) * stretch
        folds.append(_fold(model, start, start - split.label_delay - first_event, stretch))
    return StudyFolds(kind="expanding", folds=tuple(folds))


def _fold(
    model: Model, start: datetime, train_length: timedelta, test_length: timedelta
) -> TimeSplit:
    split = model.split
    train_end = start - split.label_delay
    return TimeSplit(
        train_start=train_end - train_length,
        train_end=train_end,
        test_start=start,
        test_end=start + test_length,
        label_delay=split.label_delay,
        drop_known_positive_groups=split.drop_known_positive_groups,
        zone=split.zone,
    )
