"""Folds of time before a model's test."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import TrainingDataError
from penstock.training.declarations import RollingTimeSplit, TimeSplit
from penstock.training.study_folds import study_folds

TEST_START = datetime(2024, 6, 1, tzinfo=UTC)


class Declared:
    """What the folds ask of a model."""

    def __init__(self, split):
        self.split = split


def days(number):
    return timedelta(days=number)


def declared(*, train_days=7, delay_days=2, test_days=5):
    train_end = TEST_START - days(delay_days)
    return Declared(
        TimeSplit(
            train_start=train_end - days(train_days),
            train_end=train_end,
            test_start=TEST_START,
            test_end=TEST_START + days(test_days),
            label_delay=days(delay_days),
            drop_known_positive_groups="station",
        )
    )


class TestRolling:
    def test_each_fold_is_the_declared_split_moved_back(self):
        plan = study_folds(declared(), 3, TEST_START - days(200))
        assert plan.kind == "rolling"
        for fold in plan.folds:
            assert fold.train_end - fold.train_start == days(7)
            assert fold.test_start - fold.train_end == days(2)
            assert fold.test_end - fold.test_start == days(5)
            assert fold.drop_known_positive_groups == "station"

    def test_the_published_protocol_is_rolled_back_by_weeks(self, card_fraud_model):
        plan = study_folds(card_fraud_model, 2, datetime(2018, 4, 1, tzinfo=UTC))
        assert [fold.train_start.day for fold in plan.folds] == [4, 11]
        assert plan.end == datetime(2018, 8, 1, tzinfo=UTC)


class TestExpanding:
    def test_where_the_past_is_short_each_fold_trains_on_all_before_it(self):
        first = TEST_START - days(12)
        plan = study_folds(declared(), 4, first)
        assert plan.kind == "expanding"
        assert {fold.train_start for fold in plan.folds} == {first}
        assert plan.folds[-1].test_end == TEST_START - days(2)

    def test_a_split_that_refits_is_studied_before_its_first_test(self):
        split = RollingTimeSplit(
            train_start=TEST_START - days(60),
            test_start=TEST_START,
            test_end=TEST_START + days(100),
            label_delay=timedelta(minutes=30),
        )
        plan = study_folds(Declared(split), 3, TEST_START - days(60))
        assert plan.end == TEST_START - timedelta(minutes=30)

    def test_a_past_shorter_than_the_delay_is_refused(self):
        with pytest.raises(TrainingDataError, match="shorter than the labels' delay"):
            study_folds(declared(delay_days=10), 2, TEST_START - days(15))


@given(
    num_folds=st.integers(2, 8),
    train_days=st.integers(1, 40),
    delay_days=st.integers(0, 10),
    test_days=st.integers(1, 20),
    past_days=st.integers(25, 400),
)
def test_no_fold_sees_what_is_not_known_yet(
    num_folds, train_days, delay_days, test_days, past_days
):
    model = declared(train_days=train_days, delay_days=delay_days, test_days=test_days)
    first = TEST_START - days(past_days)
    folds = study_folds(model, num_folds, first).folds
    assert len(folds) == num_folds
    for fold in folds:
        assert fold.train_start >= first
        assert fold.test_start - fold.train_end >= days(delay_days)
        # The labels of the last fold are known when the model's own test begins.
        assert fold.test_end + days(delay_days) <= TEST_START
    for earlier, later in pairwise(folds):
        assert earlier.test_end <= later.test_start
