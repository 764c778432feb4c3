"""Rows by pieces, in memory and in files, held against the same rows as a frame."""

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
from penstock.training.row_sources import FREE_SHARE, HeldRows, PieceRows, plan_rows
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


@pytest.fixture(params=["memory", "files"])
def both(request, tmp_path):
    frame = make_frame(NUM_ROWS)
    made = store(frame, tmp_path / "set")
    folder = tmp_path / "rows" if request.param == "files" else None
    return HeldRows(frame), PieceRows.open(made, folder, groups=["station"])


class TestPieceRows:
    def test_what_it_keeps_in_memory_are_no_features(self, both):
        assert both[1].light.columns == ["__row_number", "at", "station", "broke"]

    def test_a_group_that_is_a_feature_is_kept_too(self, both, tmp_path):
        made = both[1].training_set
        pieced = PieceRows.open(made, tmp_path / "other", groups=["f2"])
        assert pieced.light.columns == ["__row_number", "at", "station", "broke", "f2"]

    @pytest.mark.parametrize(
        "fold", [SPLIT, PurgedFolds(start=START, end=START + timedelta(days=90), num_folds=3)]
    )
    def test_both_sides_of_a_fold_are_the_same_numbers(self, both, fold):
        fold = fold.folds()[0]
        held, pieced = (
            sides_of(rows, MODEL, fold, event_time="at", feature_names=FEATURES) for rows in both
        )
        np.testing.assert_array_equal(held.train.features, pieced.train.features)
        np.testing.assert_array_equal(held.train.labels, pieced.train.labels)
        np.testing.assert_array_equal(held.train_times, pieced.train_times)
        np.testing.assert_array_equal(held.test.features, pieced.test.features)
        assert held.scaling.to_json() == pieced.scaling.to_json()
        assert_frame_equal(held.test.frame, pieced.test.frame)
        scaled = [
            rows.scaled(sides.scaling, sides.train.features)
            for rows, sides in zip(both, (held, pieced), strict=True)
        ]
        np.testing.assert_array_equal(*scaled)
        is_in_files = both[1].folder is not None
        assert [mapped_file(each) is not None for each in scaled] == [False, is_in_files]

    def test_rows_in_the_sets_order_are_laid_out_without_places(self, both):
        held, pieced = both
        rows = pieced.matrix(pieced.light, feature_names=FEATURES[::-1], side="training")
        expected = held.matrix(held.light, feature_names=FEATURES[::-1], side="training")
        np.testing.assert_array_equal(rows, expected)

    def test_the_next_folds_matrix_leaves_the_one_before_as_it_is(self, both):
        pieced = both[1]
        first = pieced.matrix(pieced.light[:10], feature_names=FEATURES, side="training")
        before = first.copy()
        second = pieced.matrix(pieced.light[10:30], feature_names=FEATURES, side="training")
        np.testing.assert_array_equal(first, before)
        assert len(second) == 20

    def test_what_is_released_leaves_nothing_on_the_disk(self, both):
        pieced = both[1]
        pieced.matrix(pieced.light, feature_names=FEATURES, side="training")
        if pieced.folder is not None:
            assert list(pieced.folder.iterdir())
        pieced.release()
        assert pieced.folder is None or not pieced.folder.exists()

    def test_its_digest_and_its_counts_are_the_frames(self, both):
        held, pieced = both
        assert held.digest() == pieced.digest()
        assert count_folds(held, MODEL, event_time="at") == count_folds(
            pieced, MODEL, event_time="at"
        )


class TestMappedFile:
    def test_a_part_of_a_file_is_none(self, both):
        pieced = both[1]
        whole = pieced.matrix(pieced.light, feature_names=FEATURES, side="training")
        file = pieced.folder and pieced.folder / "features.npy"
        assert mapped_file(whole) == file
        assert mapped_file(whole[5:]) is None
        assert mapped_file(np.array(whole)) is None


class TestPlanRows:
    def planned(self, **changed):
        given = {"num_columns": 8, "num_features": 5, "free_bytes": 10**6, "allowed_bytes": None}
        return plan_rows(1000, **{**given, **changed})

    def test_rows_lie_in_memory_up_to_a_share_of_what_is_free(self):
        needed = 1000 * (8 * 8 + 5 * 4)
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
