"""Which training rows an estimator holds out to know when to stop."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import TrainingDataError


@dataclass(frozen=True)
class Holdout:
    """Rows come in time order: the first ones train, the last ones validate."""

    num_training_rows: int
    first_validation_row: int


def hold_out(
    num_rows: int,
    share: float,
    *,
    event_times: npt.NDArray[Any] | None = None,
    label_delay: timedelta = timedelta(0),
) -> Holdout:
    """Hold out the newest share of the rows; what lies between the two parts does neither.

    Args:
        num_rows: of the training side, in the order of their event times.
        share: of the rows, above 0 and below 1.
        event_times: datetime64 [num_rows]; None: the label's delay is not looked at.
        label_delay: a row trains only if its label was known when validation begins.

    Raises:
        TrainingDataError: one of the parts has no row.
    """
    first = num_rows - round(num_rows * share)
    num_training = first
    if event_times is not None and first < num_rows:
        begin = event_times[first] - np.timedelta64(label_delay)
        # A label is known the moment its delay is over; rows of one moment stay together.
        num_training = min(first, int(np.searchsorted(event_times, begin, side="right")))
    if num_training == 0 or first == num_rows:
        raise TrainingDataError(
            f"of {num_rows:,} training rows {num_training:,} can train and {num_rows - first:,} "
            f"validate, with a validation share of {share} and a label delay of {label_delay}",
            allowed="at least one row in each part",
            next_step="train on a longer stretch, or change validation_share of early_stopping",
        )
    return Holdout(num_training_rows=num_training, first_validation_row=first)
