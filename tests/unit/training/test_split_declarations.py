"""Which examples train and which test, where a model is fitted again and again."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.training.declarations import RollingTimeSplit, TimeSplit

ROLLING = {
    "train_start": datetime(2024, 11, 1),
    "test_start": datetime(2024, 12, 10),
    "test_end": datetime(2025, 2, 5),
    "label_delay": timedelta(minutes=30),
}
moments = st.datetimes(datetime(2020, 1, 1), datetime(2022, 1, 1))


def test_a_split_of_one_fold_is_its_own():
    split = TimeSplit(
        train_start=datetime(2024, 1, 1),
        train_end=datetime(2024, 1, 8),
        test_start=datetime(2024, 1, 8),
        test_end=datetime(2024, 1, 9),
    )
    assert split.folds() == (split,)


class TestRollingTimeSplit:
    def test_each_month_is_tested_by_a_fit_on_all_that_was_known_at_its_start(self):
        folds = RollingTimeSplit(**ROLLING).folds()
        tested = [(fold.test_start_utc, fold.test_end_utc) for fold in folds]
        starts = [(2024, 12, 10), (2025, 1, 1), (2025, 2, 1), (2025, 2, 5)]
        days = [datetime(*start, tzinfo=UTC) for start in starts]
        assert tested == list(pairwise(days))
        assert {fold.train_start_utc for fold in folds} == {datetime(2024, 11, 1, tzinfo=UTC)}
        known = [fold.test_start_utc - fold.train_end_utc for fold in folds]
        assert known == [timedelta(minutes=30)] * 3

    def test_a_month_begins_in_the_splits_zone(self):
        folds = RollingTimeSplit(**ROLLING, zone="Europe/Paris").folds()
        assert folds[1].test_start_utc == datetime(2024, 12, 31, 23, tzinfo=UTC)

    @given(
        start=moments,
        length=st.integers(1, 900),
        every=st.integers(1, 400) | st.just("month"),
        delay=st.integers(0, 2000),
    )
    def test_folds_cover_the_test_once_and_never_train_on_what_is_not_known(
        self, start, length, every, delay
    ):
        split = RollingTimeSplit(
            train_start=start - timedelta(days=3),
            test_start=start,
            test_end=start + timedelta(hours=length),
            refit_every=every if every == "month" else timedelta(hours=every),
            label_delay=timedelta(minutes=delay),
            zone="America/New_York",
        )
        folds = split.folds()
        assert folds[0].test_start_utc == split.test_start_utc
        assert folds[-1].test_end_utc == split.test_end_utc
        for fold, following in pairwise(folds):
            assert fold.test_end_utc == following.test_start_utc
        for fold in folds:
            assert fold.train_end_utc + split.label_delay == fold.test_start_utc

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ({"refit_every": timedelta(0)}, "above zero"),
            ({"refit_every": "week"}, "refit_every"),
            ({"train_start": datetime(2024, 12, 10)}, "is known at test_start"),
            ({"train_start": datetime(2024, 12, 9, 23, 30)}, "is known at test_start"),
            ({"test_end": datetime(2024, 12, 10)}, "test_start must come before"),
            ({"label_delay": timedelta(-1)}, "must not be negative"),
        ],
    )
    def test_one_that_contradicts_itself_is_refused_where_it_is_written(self, changed, words):
        with pytest.raises(ValidationError, match=words):
            RollingTimeSplit(**ROLLING | changed)
