"""Rows in files, held against the same rows in memory."""

from datetime import timedelta

import numpy as np
import pytest
from polars.testing import assert_frame_equal

from penstock.training.declarations import (
    AveragePrecision,
    GatePolicy,
    LogisticRegression,
    Model,
    TimeSplit,
)
from penstock.training.fold_declarations import PurgedFolds
from penstock.training.folds import count_folds, sides_of
from penstock.training.mapped_rows import mapped_file
from penstock.training.row_sources import FREE_SHARE, FiledRows, HeldRows, plan_rows
from stored_sets import FEATURES, START, make_frame, store

NUM_ROWS = 1000
SPLIT = TimeSplit(
    train_start=START,
    train_end=START + timedelta(days=60),
    test_start=START + timedelta(days=65),
    test_end=START + timedelta(days=90),
    label_delay=timedelta(days=5),
    drop_known_positive_groups="station",
)
MODEL = Model(
    name="pumps",
    label_table="reservoir.pumps",
    label="broke",
    feature_service="reservoir_v1",
    split=SPLIT,
    estimators={"linear": LogisticRegression()},
    default_estimator="linear",
    metrics=(AveragePrecision(),),
    primary_metric="average_precision",
    gate=GatePolicy(metric="average_precision"),
)


@pytest.fixture
def both(tmp_path):
    frame = make_frame(NUM_ROWS)
    made = store(frame, tmp_path / "set")
    return HeldRows(frame), FiledRows.open(made, tmp_path / "rows", groups=["station"])


class TestFiledRows:
    def test_what_it_keeps_in_memory_are_no_features(self, both):
        assert both[1].light.columns == ["__row_number", "at", "station", "broke"]

    def test_a_group_that_is_a_feature_is_kept_too(self, both, tmp_path):
        made = both[1].training_set
        filed = FiledRows.open(made, tmp_path / "other", groups=["f2"])
        assert filed.light.columns == ["__row_number", "at", "station", "broke", "f2"]

    @pytest.mark.parametrize(
        "fold", [SPLIT, PurgedFolds(start=START, end=START + timedelta(days=90), num_folds=3)]
    )
    def test_both_sides_of_a_fold_are_the_same_numbers(self, both, fold):
        fold = fold.folds()[0]
        held, filed = (
            sides_of(rows, MODEL, fold, event_time="at", feature_names=FEATURES) for rows in both
        )
        np.testing.assert_array_equal(held.train.features, filed.train.features)
        np.testing.assert_array_equal(held.train.labels, filed.train.labels)
        np.testing.assert_array_equal(held.train_times, filed.train_times)
        np.testing.assert_array_equal(held.test.features, filed.test.features)
        assert held.scaling.to_json() == filed.scaling.to_json()
        assert_frame_equal(held.test.frame, filed.test.frame)
        scaled = [
            rows.scaled(sides.scaling, sides.train.features)
            for rows, sides in zip(both, (held, filed), strict=True)
        ]
        np.testing.assert_array_equal(*scaled)
        assert [mapped_file(each) is not None for each in scaled] == [False, True]

    def test_the_next_folds_matrix_leaves_the_one_before_as_it_is(self, both):
        filed = both[1]
        first = filed.matrix(filed.light[:10], feature_names=FEATURES, side="training")
        before = first.copy()
        second = filed.matrix(filed.light[10:30], feature_names=FEATURES, side="training")
        np.testing.assert_array_equal(first, before)
        assert len(second) == 20

    def test_what_is_released_leaves_nothing_on_the_disk(self, both):
        filed = both[1]
        filed.matrix(filed.light, feature_names=FEATURES, side="training")
        assert list(filed.folder.iterdir())
        filed.release()
        assert not filed.folder.exists()

    def test_its_digest_and_its_counts_are_the_frames(self, both):
        held, filed = both
        assert held.digest() == filed.digest()
        assert count_folds(held, MODEL, event_time="at") == count_folds(
            filed, MODEL, event_time="at"
        )


class TestMappedFile:
    def test_a_part_of_a_file_is_none(self, both):
        filed = both[1]
        whole = filed.matrix(filed.light, feature_names=FEATURES, side="training")
        assert mapped_file(whole) == filed.folder / "features.npy"
        assert mapped_file(whole[5:]) is None
        assert mapped_file(np.array(whole)) is None


class TestPlanRows:
    def planned(self, **changed):
        given = {"num_columns": 8, "num_features": 5, "free_bytes": 10**6, "allowed_bytes": None}
        return plan_rows(1000, **{**given, **changed})

    def test_rows_lie_in_memory_up_to_a_share_of_what_is_free(self):
        needed = 1000 * (8 * 8 + 5 * 12)
        assert self.planned(free_bytes=needed / FREE_SHARE).in_memory
        assert not self.planned(free_bytes=needed / FREE_SHARE - 2).in_memory

    def test_what_the_settings_allow_wins(self):
        found = self.planned(allowed_bytes=0)
        assert not found.in_memory
        assert (
            found.reason
            == "1,000 rows x 8 columns take 0.1 MB, more than the 0.0 MB that rows may take"
        )
        assert self.planned(allowed_bytes=10**9, free_bytes=0).in_memory
