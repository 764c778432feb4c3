"""Splits examples by time, as the label's delay allows, and refuses what cannot be trained on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.errors import TrainingDataError
from penstock.training.declarations import LeakAlarm, Task, TimeSplit
from penstock.training.estimators.base import Labels
from penstock.training.row_blocks import each_block

_AT_LEAST: Mapping[Task, str] = {
    "binary": "at least one positive and one negative example",
    "regression": "at least two different labels",
    "unsupervised": "at least one row",
}
_MAX_SHOWN = 5
DAY_COLUMN = "__day"
"""The calendar day of each test row, in the split's zone."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One side of a split, ready for an estimator."""

    features: npt.NDArray[np.float64]
    """[n, F]; NaN is missing."""
    labels: Labels
    """[n], int8 0 or 1, or float64 numbers."""
    frame: pl.DataFrame
    """The same rows, with keys, event time and, for a test, `DAY_COLUMN`."""

    @property
    def num_rows(self) -> int:
        """How many examples."""
        return len(self.labels)

    @property
    def num_positives(self) -> int:
        """How many of them are positive, where labels are classes."""
        return int(self.labels.sum())


def split(
    frame: pl.DataFrame, policy: TimeSplit, *, event_time: str, label: str | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut the frame into training and test rows.

    A test day loses the rows of every group that had a positive event since `train_start` whose
    label is known when that day starts: event time < start of day - label delay, in whole days of
    the split's zone. This is the rule of the Fraud Detection Handbook (`get_train_test_set`).

    Args:
        frame: examples with `event_time` as timestamp with zone, `label`, and the policy's column
            of groups.
        policy: the moments and the delay.
        event_time: the column of event times.
        label: the column of labels; None: only where no groups are dropped.

    Returns:
        The training rows and the test rows, each in the frame's order; test rows carry
        `DAY_COLUMN`.
    """
    moment = pl.col(event_time)
    train = frame.filter((moment >= policy.train_start_utc) & (moment < policy.train_end_utc))
    test = frame.filter((moment >= policy.test_start_utc) & (moment < policy.test_end_utc))
    test = with_day(test, event_time, policy.zone)
    group = policy.drop_known_positive_groups
    if group is None or label is None:
        return train, test
    first_positive = (
        frame.filter((moment >= policy.train_start_utc) & (pl.col(label) == 1))
        .group_by(group)
        .agg(moment.min().alias("__first_positive"))
    )
    starts = test[DAY_COLUMN].unique().to_list()
    known_from = pl.DataFrame(
        {
            DAY_COLUMN: starts,
            "__known_before": [_start_of_day(d, policy.zone) - policy.label_delay for d in starts],
        },
        schema_overrides={"__known_before": frame.schema[event_time]},
    )
    known = pl.col("__first_positive") < pl.col("__known_before")
    test = (
        test.join(first_positive, on=group, how="left", maintain_order="left")
        .join(known_from, on=DAY_COLUMN, how="left", maintain_order="left")
        .filter(~known.fill_null(value=False))
        .drop("__first_positive", "__known_before")
    )
    return train, test


def with_day(test: pl.DataFrame, event_time: str, zone: str) -> pl.DataFrame:
    """Give test rows with `DAY_COLUMN`."""
    day = pl.col(event_time).dt.convert_time_zone(zone).dt.date()
    return test.with_columns(day.alias(DAY_COLUMN))


def _start_of_day(day: datetime, zone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))


def to_examples(
    frame: pl.DataFrame,
    *,
    feature_names: tuple[str, ...],
    label: str | None,
    side: str,
    task: Task = "binary",
) -> Examples:
    """Turn one side of a split into arrays.

    Raises:
        TrainingDataError: no rows, a missing or non-numeric column, or labels that
            `check_labels` refuses.
    """
    labels = check_labels(frame, label=label, side=side, task=task)
    features = to_matrix(frame, feature_names=feature_names, side=side)
    return Examples(features=features, labels=labels, frame=frame)


def to_matrix(
    frame: pl.DataFrame,
    *,
    feature_names: Sequence[str],
    side: str,
    out: npt.NDArray[np.float64] | None = None,
) -> npt.NDArray[np.float64]:
    """Lay features out row by row, [n, F], in `out` where that is given; NaN is missing.

    Raises:
        TrainingDataError: a missing or non-numeric column.
    """
    missing = [name for name in feature_names if name not in frame.columns]
    if missing:
        raise TrainingDataError(
            f"the {side} split lacks the features {', '.join(missing)}",
            allowed=", ".join(frame.columns),
        )
    for name in feature_names:
        dtype = frame.schema[name]
        if not (dtype.is_numeric() or dtype == pl.Boolean or dtype == pl.Null):
            raise TrainingDataError(
                f"the feature {name!r} is of type {dtype}", allowed="numbers and booleans"
            )
    filled = frame.select(pl.col(n).cast(pl.Float64).fill_null(np.nan) for n in feature_names)
    columns = [column.to_numpy() for column in filled]
    rows = np.empty((frame.height, len(feature_names))) if out is None else out

    def fill(block: slice) -> None:
        # A block's columns are turned round while they are in the cache: half the time that polars
        # takes for rows, a sixth of what turning round all at once takes.
        rows[block] = np.array([column[block] for column in columns]).T

    each_block(frame.height, fill)
    return rows


def check_labels(
    frame: pl.DataFrame, *, label: str | None, side: str, task: Task = "binary"
) -> Labels:
    """Give the labels: 0 and 1 as int8, or numbers as float64; without a label, zeros.

    The labels of an unsupervised task are for metrics of classes alone: 0 and 1.

    Raises:
        TrainingDataError: there are no rows; the column is missing, has nulls or what is no label
            of the task; or every label is the same.
    """
    if frame.is_empty():
        raise TrainingDataError(
            f"the {side} split has no rows",
            allowed=_AT_LEAST[task],
            next_step="compare the split's dates in model.py with `penstock data show`",
        )
    if label is None:
        return np.zeros(len(frame), dtype=np.int8)
    if label not in frame.columns:
        raise TrainingDataError(
            f"the {side} split has no label column {label!r}",
            allowed=", ".join(frame.columns),
            next_step="set `label` in model.py to a column of the label table",
        )
    column = frame[label]
    if column.dtype == pl.Null or column.null_count():
        raise TrainingDataError(
            f"{column.null_count():,} of {len(column):,} labels {label!r} are missing in the "
            f"{side} split",
            allowed="a label in every row",
            next_step="end the split where labels are known",
        )
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise TrainingDataError(
            f"the label {label!r} is of type {column.dtype}",
            allowed="numbers" if task == "regression" else "0 and 1, or true and false",
        )
    numbers = column.cast(pl.Float64)
    if task != "regression" and not ((numbers == 0) | (numbers == 1)).all():
        raise TrainingDataError(
            f"the label {label!r} takes the values {_values(numbers)}",
            allowed="0 and 1",
            next_step="for a number as label, declare estimators and metrics of regression",
        )
    if not numbers.is_finite().all():
        raise TrainingDataError(
            f"{(~numbers.is_finite()).sum():,} labels {label!r} of the {side} split are no finite "
            "numbers",
            allowed="finite numbers",
        )
    if numbers.min() == numbers.max():
        raise TrainingDataError(
            f"every label {label!r} of the {side} split is {_values(numbers)}",
            allowed=_AT_LEAST[task],
            next_step="widen the split's dates in model.py",
        )
    return (numbers if task == "regression" else column.cast(pl.Int8)).to_numpy()


def _values(numbers: pl.Series) -> str:
    values = numbers.unique().sort().head(_MAX_SHOWN).to_list()
    return ", ".join(f"{value:g}" for value in values)


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Why a result is not believed."""

    finding: str
    allowed: str
    next_step: str


def suspect_leak(alarm: LeakAlarm | None, metrics: Mapping[str, float]) -> Leak | None:
    """Say why the metrics cannot be honest, or None where they can."""
    if alarm is None or alarm.is_plausible(metrics[alarm.metric]):
        return None
    words, limit = alarm.bound
    return Leak(
        finding=f"{alarm.metric} is {metrics[alarm.metric]:.3f}: too good to be true, so the "
        "future has leaked into the features",
        allowed=f"{words} {limit:g}",
        next_step="look for a feature that is made of the label without its delay",
    )
