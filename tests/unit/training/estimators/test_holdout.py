"""Held-out rows are the newest ones, and no label is trained on before it was known."""

from datetime import timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import TrainingDataError
from penstock.training.estimators.holdout import hold_out


def test_the_newest_rows_validate_and_the_others_train():
    held = hold_out(10, 0.2)
    assert (held.num_training_rows, held.first_validation_row) == (8, 8)


@given(
    gaps=st.lists(st.integers(0, 5), min_size=2, max_size=60),
    share=st.floats(0.05, 0.95),
    delay_s=st.integers(0, 40),
)
def test_a_row_trains_only_if_its_label_was_known_when_validation_begins(gaps, share, delay_s):
    times = np.datetime64("2018-04-01", "us") + np.cumsum(gaps).astype("timedelta64[s]")
    delay = timedelta(seconds=delay_s)
    try:
        held = hold_out(len(times), share, event_times=times, label_delay=delay)
    except TrainingDataError:
        return
    begin = times[held.first_validation_row]
    known = times + np.timedelta64(delay) <= begin
    assert known[: held.num_training_rows].all()
    assert held.num_training_rows == min(known.sum(), held.first_validation_row)


@pytest.mark.parametrize(("num_rows", "share"), [(1, 0.5), (3, 0.01), (3, 0.99)])
def test_a_part_without_rows_is_refused(num_rows, share):
    with pytest.raises(TrainingDataError, match="at least one row in each part"):
        hold_out(num_rows, share)


def test_a_label_delay_that_leaves_nothing_to_train_on_is_refused():
    times = np.datetime64("2018-04-01", "us") + np.arange(10).astype("timedelta64[h]")
    with pytest.raises(TrainingDataError, match="0 can train"):
        hold_out(10, 0.2, event_times=times, label_delay=timedelta(days=7))
