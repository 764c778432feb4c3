"""Which rows of a frame train and which test, for every kind of fold."""

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.errors import DeclarationError, TrainingDataError
from penstock.training.fold_declarations import (
    Fold,
    GroupFold,
    PurgedFold,
    RandomFold,
    Stretch,
)
from penstock.training.split_declarations import TimeSplit
from penstock.training.validation import split, with_day


def cut(
    frame: pl.DataFrame, fold: Fold, *, event_time: str, label: str | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut the frame into a fold's training and test rows.

    Args:
        frame: examples with `event_time` as timestamp with zone, `label`, and the columns of
            groups that the fold names.
        fold: which rows train and which test.
        event_time: the column of event times.
        label: the column of labels.

    Returns:
        The training rows and the test rows, each in the frame's order; test rows carry
        `DAY_COLUMN`.

    Raises:
        TrainingDataError: rows belong to no group, where groups are to be kept apart.
        DeclarationError: folds that share classes out evenly have no label to go by.
    """
    match fold:
        case TimeSplit():
            return split(frame, fold, event_time=event_time, label=label)
        case PurgedFold():
            return _purged(frame, fold, event_time)
        case GroupFold():
            return _by_group(frame, fold, event_time, _needed(label))
        case RandomFold():
            rows = _within(frame, fold, event_time)
            is_test = pl.Series(_deal(rows, fold, _needed(label)) == fold.part)
            return rows.filter(~is_test), with_day(rows.filter(is_test), event_time, fold.zone)


def _needed(label: str | None) -> str:
    if label is None:
        raise DeclarationError(
            "folds by group or at random share classes out evenly, and the model has no label",
            allowed="folds of time",
        )
    return label


def _purged(
    frame: pl.DataFrame, fold: PurgedFold, event_time: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    moment = pl.col(event_time)
    rows = _within(frame, fold, event_time)
    trains = (moment <= fold.test_start - fold.before) & (moment < fold.test_start)
    trains |= moment >= fold.test_end + fold.after
    tests = (moment >= fold.test_start) & (moment < fold.test_end)
    return rows.filter(trains), with_day(rows.filter(tests), event_time, fold.zone)


def _by_group(
    frame: pl.DataFrame, fold: GroupFold, event_time: str, label: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    within = fold.within
    if isinstance(within, TimeSplit):
        train, test = split(frame, within, event_time=event_time, label=label)
    else:
        train = _within(frame, within, event_time)
        test = with_day(train, event_time, within.zone)
    groups = frame[fold.group]
    if nulls := groups.null_count():
        raise TrainingDataError(
            f"{nulls:,} rows have no {fold.group}",
            allowed="a group in every row, where groups are kept apart",
            next_step="make the column required in tables.py, or declare other folds",
        )
    known = groups.unique().sort()
    # Dealt like cards after a shuffle: parts differ by one group at most.
    order = np.random.default_rng(fold.seed).permutation(len(known))
    is_mine = pl.col(fold.group).is_in(known[order[fold.part :: fold.num_parts]].implode())
    return train.filter(~is_mine), test.filter(is_mine)


def _deal(rows: pl.DataFrame, fold: RandomFold, label: str) -> npt.NDArray[np.int64]:
    """Give each row's part; alike labels are spread evenly over the parts."""
    random = np.random.default_rng(fold.seed)
    labels = rows[label].cast(pl.Float64, strict=False).fill_null(np.nan).to_numpy()
    order = np.lexsort((random.random(len(labels)), labels))
    num_rounds = -(-len(labels) // fold.num_parts)
    rounds = np.tile(np.arange(fold.num_parts), (num_rounds, 1))
    parts = np.empty(len(labels), dtype=np.int64)
    parts[order] = random.permuted(rounds, axis=1).ravel()[: len(labels)]
    return parts


def _within(frame: pl.DataFrame, stretch: Stretch, event_time: str) -> pl.DataFrame:
    moment = pl.col(event_time)
    return frame.filter((moment >= stretch.start_utc) & (moment < stretch.end_utc))
