"""Splits by time, and what cannot be trained on."""

from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from penstock.errors import TrainingDataError
from penstock.training.declarations import LeakAlarm, TimeSplit
from penstock.training.validation import (
    DAY_COLUMN,
    check_labels,
    split,
    suspect_leak,
    to_examples,
)

POLICY = TimeSplit(
    train_start=datetime(2024, 1, 1),
    train_end=datetime(2024, 1, 3),
    label_delay=timedelta(days=2),
    test_start=datetime(2024, 1, 5),
    test_end=datetime(2024, 1, 8),
    drop_known_positive_groups="station",
)


def events(*rows):
    frame = pl.DataFrame(rows, schema=["time", "station", "spilled"], orient="row")
    return frame.with_columns(pl.col("time").cast(pl.Datetime("us", "UTC")))


def at(day, hour=0, minute=0, second=0, microsecond=0):
    return datetime(2024, 1, day, hour, minute, second, microsecond, tzinfo=UTC)


def cut(frame, policy=POLICY):
    return split(frame, policy, event_time="time", label="spilled")


class TestSplit:
    def test_stretches_are_half_open(self):
        frame = events(
            (at(1), 1, 0),
            (at(2, 23, 59, 59, 999_999), 2, 0),
            (at(3), 3, 0),
            (at(4, 23), 4, 0),
            (at(5), 5, 0),
            (at(7, 23), 6, 0),
            (at(8), 7, 0),
        )
        train, test = cut(frame)
        assert train["station"].to_list() == [1, 2]
        assert test["station"].to_list() == [5, 6]

    def test_a_group_leaves_the_test_on_the_day_its_positive_becomes_known(self):
        # Positive on the 4th at noon, known after two days: out from the 7th on, not on the 6th.
        frame = events((at(4, 12), 9, 1), (at(5, 1), 9, 0), (at(6, 1), 9, 0), (at(7, 1), 9, 0))
        _, test = cut(frame)
        assert test["time"].to_list() == [at(5, 1), at(6, 1)]

    def test_a_group_that_was_positive_in_training_is_out_of_every_test_day(self):
        frame = events((at(1, 5), 9, 1), (at(5, 1), 9, 0), (at(7, 1), 9, 1), (at(7, 2), 8, 0))
        _, test = cut(frame)
        assert test["station"].to_list() == [8]

    def test_a_positive_before_training_began_counts_for_nothing(self):
        earlier = events((datetime(2023, 12, 31, tzinfo=UTC), 9, 1), (at(5, 1), 9, 0))
        assert cut(earlier)[1]["station"].to_list() == [9]

    def test_days_are_counted_in_the_splits_zone(self):
        policy = POLICY.model_copy(update={"zone": "America/New_York"})
        _, test = cut(events((at(6, 2), 1, 0)), policy)
        assert test[DAY_COLUMN].to_list() == [datetime(2024, 1, 5).date()]

    def test_no_group_leaves_where_none_is_named(self):
        policy = POLICY.model_copy(update={"drop_known_positive_groups": None})
        frame = events((at(1, 5), 9, 1), (at(5, 1), 9, 0))
        assert cut(frame, policy)[1].height == 1

    def test_the_rows_keep_the_order_of_the_frame(self):
        rows = [(at(5, hour), hour % 3, 0) for hour in (7, 3, 9, 1)]
        assert cut(events(*rows))[1]["time"].to_list() == [row[0] for row in rows]

    def test_the_published_protocol_has_its_published_counts(
        self, published_examples, card_fraud_model
    ):
        train, test = split(
            published_examples, card_fraud_model.split, event_time="TX_DATETIME", label="TX_FRAUD"
        )
        assert (train.height, train["TX_FRAUD"].sum()) == (67_240, 598)
        assert (test.height, test["TX_FRAUD"].sum()) == (58_264, 385)


def frame_of(labels, **features):
    return pl.DataFrame({"spilled": labels, **features})


class TestToExamples:
    def test_a_missing_value_becomes_nan_and_a_flag_a_number(self):
        frame = frame_of([0, 1], a=[None, 2], b=[True, False])
        examples = to_examples(frame, feature_names=("b", "a"), label="spilled", side="training")
        np.testing.assert_array_equal(examples.features, [[1.0, np.nan], [0.0, 2.0]])
        assert (examples.num_rows, examples.num_positives) == (2, 1)

    def test_no_rows_are_refused(self):
        frame = frame_of([], a=[])
        with pytest.raises(TrainingDataError, match="test split has no rows"):
            to_examples(frame, feature_names=("a",), label="spilled", side="test")

    def test_a_feature_that_is_absent_is_named(self):
        with pytest.raises(TrainingDataError, match="lacks the features b"):
            to_examples(frame_of([0, 1]), feature_names=("b",), label="spilled", side="test")

    def test_a_feature_of_words_is_refused(self):
        frame = frame_of([0, 1], a=["x", "y"])
        with pytest.raises(TrainingDataError, match="of type String"):
            to_examples(frame, feature_names=("a",), label="spilled", side="test")


class TestLabels:
    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            ([0, 0, 0], "is 0"),
            ([1, 1], "is 1"),
            ([0, 1, None], "1 of 3 labels"),
            ([None, None], "2 of 2 labels"),
            ([0, 1, 2], "the values 0, 1, 2"),
            (["0", "1"], "of type String"),
            ([0.5, 1.0], "the values 0.5, 1"),
            ([float("nan"), 1.0], "the values"),
        ],
    )
    def test_what_is_not_two_classes_is_refused(self, labels, words):
        with pytest.raises(TrainingDataError, match=words) as refused:
            check_labels(frame_of(labels), label="spilled", side="training")
        assert refused.value.exit_code == 2

    @pytest.mark.parametrize(
        ("labels", "words"),
        [
            ([2.5, 2.5], "every label 'spilled' of the training split is 2.5"),
            ([1.0, float("nan"), 2.0], "1 labels 'spilled' of the training split are no finite"),
            ([1.0, float("inf")], "no finite"),
            ([1.0, None], "1 of 2 labels"),
            (["1", "2"], "of type String"),
            ([], "has no rows"),
        ],
    )
    def test_what_is_no_number_to_learn_from_is_refused(self, labels, words):
        with pytest.raises(TrainingDataError, match=words):
            check_labels(frame_of(labels), label="spilled", side="training", task="regression")

    def test_numbers_stay_what_they_are(self):
        found = check_labels(frame_of([3, -1]), label="spilled", side="test", task="regression")
        assert found.dtype == np.float64
        assert found.tolist() == [3.0, -1.0]

    def test_a_label_that_is_absent_is_refused_with_the_columns_there_are(self):
        with pytest.raises(TrainingDataError, match=r"no label column 'fraud'.*spilled"):
            check_labels(frame_of([0, 1]), label="fraud", side="training")

    def test_true_and_false_are_one_and_zero(self):
        found = check_labels(frame_of([True, False]), label="spilled", side="training")
        assert found.tolist() == [1, 0]


class TestLeak:
    ALARM = LeakAlarm(metric="average_precision", max_plausible=0.75)

    def test_a_metric_too_good_to_be_true_is_called_a_leak(self):
        leak = suspect_leak(self.ALARM, {"average_precision": 0.993})
        assert leak is not None
        assert "leaked" in leak.finding

    def test_a_plausible_metric_is_none(self):
        assert suspect_leak(self.ALARM, {"average_precision": 0.75}) is None

    def test_an_error_too_small_to_be_true_is_called_a_leak(self):
        alarm = LeakAlarm(metric="mean_absolute_error", min_plausible=1.5)
        leak = suspect_leak(alarm, {"mean_absolute_error": 0.2})
        assert leak is not None
        assert leak.allowed == "at least 1.5"
        assert suspect_leak(alarm, {"mean_absolute_error": 1.5}) is None

    def test_without_an_alarm_nothing_is_suspected(self):
        assert suspect_leak(None, {"average_precision": 1.0}) is None
