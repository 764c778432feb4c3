"""What each kind of folds declares, and what it refuses where it is written."""

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import TypeAdapter, ValidationError

from penstock.training.declarations import (
    GroupFolds,
    GroupTimeFolds,
    Model,
    PrequentialFolds,
    PurgedFolds,
    RandomFolds,
    RollingTimeSplit,
    TimeSplit,
)
from penstock.training.fold_declarations import (
    Validation,
    derived_folds,
    groups_of,
    label_delay_of,
    remark_on,
    span_of,
)

DAY = timedelta(days=1)
WEEK = TimeSplit(
    train_start=datetime(2018, 7, 25),
    train_end=datetime(2018, 8, 1),
    test_start=datetime(2018, 8, 8),
    test_end=datetime(2018, 8, 15),
    label_delay=7 * DAY,
    drop_known_positive_groups="CUSTOMER_ID",
)
ROLLING = RollingTimeSplit(
    train_start=datetime(2024, 1, 1), test_start=datetime(2024, 2, 1), test_end=datetime(2024, 5, 1)
)
STRETCH = {"start": datetime(2024, 1, 1), "end": datetime(2024, 1, 31)}
KINDS = [
    PrequentialFolds(first=WEEK, num_folds=3),
    PurgedFolds(**STRETCH, num_folds=3, label_delay=DAY, feature_horizon=2 * DAY, embargo=DAY),
    GroupFolds(**STRETCH, group="CUSTOMER_ID", num_folds=3),
    GroupTimeFolds(group="TERMINAL_ID", num_folds=3, by_time=WEEK),
    GroupTimeFolds(
        group="TERMINAL_ID", num_folds=2, by_time=PrequentialFolds(first=WEEK, num_folds=2)
    ),
    RandomFolds(**STRETCH, num_folds=3),
    WEEK,
    ROLLING,
]


class TestPrequential:
    def test_each_fold_is_the_first_one_a_test_later(self):
        folds = PrequentialFolds(first=WEEK, num_folds=3).folds()
        starts = [datetime(2018, 8, day, tzinfo=UTC) for day in (8, 15, 22)]
        assert [fold.test_start_utc for fold in folds] == starts
        assert [fold.train_start_utc for fold in folds] == [s - 14 * DAY for s in starts]
        assert {fold.test_end_utc - fold.test_start_utc for fold in folds} == {7 * DAY}
        assert {fold.drop_known_positive_groups for fold in folds} == {"CUSTOMER_ID"}

    def test_a_longer_step_leaves_time_out(self):
        folds = PrequentialFolds(first=WEEK, num_folds=2, step=30 * DAY).folds()
        assert folds[1].test_start_utc - folds[0].test_start_utc == 30 * DAY

    def test_a_step_that_would_test_rows_twice_is_refused(self):
        with pytest.raises(ValidationError, match="tested twice"):
            PrequentialFolds(first=WEEK, num_folds=2, step=6 * DAY)

    def test_a_moved_split_still_may_not_leak(self):
        earlier = WEEK.moved(-14 * DAY)
        assert earlier.train_start_utc == datetime(2018, 7, 11, tzinfo=UTC)
        assert TimeSplit.model_validate(earlier.model_dump()) == earlier


class TestPurged:
    def test_stretches_of_equal_length_cover_the_time(self):
        folds = PurgedFolds(**STRETCH, num_folds=3).folds()
        assert [fold.test_start.day for fold in folds] == [1, 11, 21]
        assert folds[-1].test_end == datetime(2024, 1, 31, tzinfo=UTC)

    def test_the_distances_are_the_labels_before_and_the_longer_one_and_the_embargo_after(self):
        fold = KINDS[1].folds()[1]
        assert (fold.before, fold.after) == (DAY, 3 * DAY)

    def test_distances_that_leave_nothing_to_train_are_refused(self):
        # The middle fold has ten days on each side.
        PurgedFolds(**STRETCH, num_folds=3, label_delay=9 * DAY)
        with pytest.raises(ValidationError, match="nothing is left to train"):
            PurgedFolds(**STRETCH, num_folds=3, label_delay=10 * DAY)
        with pytest.raises(ValidationError, match="nothing is left to train"):
            PurgedFolds(**STRETCH, num_folds=2, embargo=15 * DAY)

    @pytest.mark.parametrize("name", ["label_delay", "feature_horizon", "embargo"])
    def test_a_distance_below_zero_is_refused(self, name):
        with pytest.raises(ValidationError, match=name):
            PurgedFolds(**STRETCH, num_folds=3, **{name: -DAY})


@pytest.mark.parametrize("folds", KINDS)
def test_what_was_declared_is_read_back_from_its_record_as_the_same_kind(folds):
    adapter = TypeAdapter(Validation)
    read = adapter.validate_json(adapter.dump_json(folds))
    assert type(read) is type(folds)
    assert read.folds() == folds.folds()


@pytest.mark.parametrize(
    ("declare", "words"),
    [
        (lambda: RandomFolds(**STRETCH, num_folds=1), "num_folds"),
        (lambda: GroupFolds(**STRETCH, num_folds=3), "group"),
        (lambda: RandomFolds(start=STRETCH["end"], end=STRETCH["start"], num_folds=2), "before"),
        (lambda: RandomFolds(**STRETCH, num_folds=2, zone="Mars/Base"), "no time zone"),
        (lambda: PurgedFolds(**STRETCH, num_folds=2, gap=DAY), "gap"),
    ],
)
def test_one_that_contradicts_itself_is_refused_where_it_is_written(declare, words):
    with pytest.raises(ValidationError, match=words):
        declare()


def test_only_the_kinds_that_look_at_the_future_carry_a_remark():
    remarks = {type(folds).__name__: remark_on(folds) for folds in KINDS}
    looking = {"PurgedFolds", "GroupFolds", "RandomFolds"}
    assert {name for name, remark in remarks.items() if remark} == looking
    assert "time is not respected" in remarks["RandomFolds"]


def test_the_delay_the_groups_and_the_span_of_each_kind_are_known():
    delays = [7 * DAY, DAY, None, 7 * DAY, 7 * DAY, None, 7 * DAY, timedelta(0)]
    assert [label_delay_of(folds) for folds in KINDS] == delays
    customer, both = ("CUSTOMER_ID",), ("TERMINAL_ID", "CUSTOMER_ID")
    groups = [customer, (), customer, both, both, (), customer, ()]
    assert [groups_of(folds) for folds in KINDS] == groups
    spans = [span_of(folds.folds()[0]) for folds in KINDS]
    week = (datetime(2018, 7, 25, tzinfo=UTC), datetime(2018, 8, 15, tzinfo=UTC))
    month = tuple(moment.replace(tzinfo=UTC) for moment in STRETCH.values())
    first = (datetime(2024, 1, 1, tzinfo=UTC), datetime(2024, 3, 1, tzinfo=UTC))
    assert spans == [week, month, month, week, week, month, week, first]


class TestDerived:
    def test_a_split_by_time_is_the_last_of_its_own_folds(self):
        folds = derived_folds(WEEK).folds()
        assert len(folds) == 4
        assert span_of(folds[-1]) == span_of(WEEK)
        assert folds[0].test_start_utc == datetime(2018, 7, 18, tzinfo=UTC)

    def test_a_rolling_split_has_folds_of_its_own(self):
        assert derived_folds(ROLLING) is ROLLING


class TestModel:
    def declared(self, card_fraud_model, **changed):
        return Model.model_validate({**dict(card_fraud_model), **changed})

    def test_without_a_word_the_folds_are_derived_from_the_split(self, card_fraud_model):
        model = self.declared(card_fraud_model, validation=None)
        assert model.folds == derived_folds(card_fraud_model.split)

    def test_the_groups_of_its_folds_come_into_the_training_set(self, card_fraud_model):
        folds = GroupTimeFolds(group="TERMINAL_ID", num_folds=2, by_time=WEEK)
        model = self.declared(card_fraud_model, validation=folds)
        assert model.group_columns == ("CUSTOMER_ID", "TERMINAL_ID")

    def test_folds_that_know_labels_earlier_than_the_split_does_are_refused(self, card_fraud_model):
        hasty = PurgedFolds(**STRETCH, num_folds=3, label_delay=6 * DAY)
        with pytest.raises(ValidationError, match="labels that nobody knew"):
            self.declared(card_fraud_model, validation=hasty)
