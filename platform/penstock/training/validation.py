"""Splits examples by time, as the label's delay allows, and refuses what cannot be trained on."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.errors import TrainingDataError
from penstock.training.declarations import LeakAlarm, TimeSplit

DAY_COLUMN = "__day"
"""The calendar day of each test row, in the split's zone."""


@dataclass(frozen=True, kw_only=True)
class Examples:
    """One side of a split, ready for an estimator."""

    features: npt.NDArray[np.float64]
    """[n, F]; NaN is missing."""
    labels: npt.NDArray[np.int8]
    """[n], 0 or 1."""
    frame: pl.DataFrame
    """The same rows, with keys, event time and, for a test, `DAY_COLUMN`."""

    @property
    def num_rows(self) -> int:
        """How many examples."""
        return len(self.labels)

    @property
    def num_positives(self) -> int:
        """How many of them are positive."""
        return int(self.labels.sum())


def split(
    frame: pl.DataFrame, policy: TimeSplit, *, event_time: str, label: str
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
        label: the column of labels.

    Returns:
        The training rows and the test rows, each in the frame's order; test rows carry
        `DAY_COLUMN`.
    """
    moment = pl.col(event_time)
    train = frame.filter((moment >= policy.train_start_utc) & (moment < policy.train_end_utc))
    day = moment.dt.convert_time_zone(policy.zone).dt.date()
    test = frame.filter((moment >= policy.test_start_utc) & (moment < policy.test_end_utc))
    test = test.with_columns(day.alias(DAY_COLUMN))
    group = policy.drop_known_positive_groups
    if group is None:
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


def _start_of_day(day: datetime, zone: str) -> datetime:
    return datetime(day.year, day.month, day.day, tzinfo=ZoneInfo(zone))


def to_examples(
    frame: pl.DataFrame, *, feature_names: tuple[str, ...], label: str, side: str
) -> Examples:
    """Turn one side of a split into arrays.

    Raises:
        TrainingDataError: no rows, a missing or non-numeric column, a null or a third label
            value, or only one class.
    """
    if frame.is_empty():
        raise TrainingDataError(
            f"the {side} split has no rows",
            allowed="at least one positive and one negative example",
            next_step="compare the split's dates in model.py with `penstock data show`",
        )
    labels = check_labels(frame, label=label, side=side)
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
    columns = frame.select(pl.col(n).cast(pl.Float64).fill_null(np.nan) for n in feature_names)
    return Examples(
        features=np.ascontiguousarray(columns.to_numpy(), dtype=np.float64),
        labels=labels,
        frame=frame,
    )


def check_labels(frame: pl.DataFrame, *, label: str, side: str) -> npt.NDArray[np.int8]:
    """Give the labels as 0 and 1.

    Raises:
        TrainingDataError: the column is missing, has nulls or other values, or one class only.
    """
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
            allowed="0 or 1 in every row",
            next_step="end the split where labels are known",
        )
    if not (column.dtype.is_numeric() or column.dtype == pl.Boolean):
        raise TrainingDataError(
            f"the label {label!r} is of type {column.dtype}", allowed="0 and 1, or true and false"
        )
    values = sorted(set(column.cast(pl.Float64).unique().to_list()))
    if not set(values) <= {0.0, 1.0}:
        shown = ", ".join(f"{value:g}" for value in values[:5])
        raise TrainingDataError(f"the label {label!r} takes the values {shown}", allowed="0 and 1")
    if len(values) < 2:
        raise TrainingDataError(
            f"every label {label!r} of the {side} split is {values[0]:g}",
            allowed="at least one positive and one negative example",
            next_step="widen the split's dates in model.py",
        )
    return column.cast(pl.Int8).to_numpy()


@dataclass(frozen=True, kw_only=True)
class Leak:
    """Why a result is not believed."""

    finding: str
    allowed: str
    next_step: str


def suspect_leak(alarm: LeakAlarm | None, metrics: Mapping[str, float]) -> Leak | None:
    """Say why the metrics cannot be honest, or None where they can."""
    if alarm is None or metrics[alarm.metric] <= alarm.max_plausible:
        return None
    return Leak(
        finding=f"{alarm.metric} is {metrics[alarm.metric]:.3f}: too good to be true, so the "
        "future has leaked into the features",
        allowed=f"at most {alarm.max_plausible:g}",
        next_step="look for a feature that is made of the label without its delay",
    )
