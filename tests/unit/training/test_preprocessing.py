"""Filling and scaling."""

import json

import numpy as np
import pytest
from pydantic import ValidationError

from penstock.errors import NotFoundError, TrainingDataError
from penstock.training import preprocessing, row_blocks
from penstock.training.declarations import PreprocessingPolicy
from penstock.training.preprocessing import Preprocessing, fit

NAMES = ("a", "b")


class TestFit:
    def test_training_rows_come_out_with_mean_0_and_deviation_1(self, synthetic):
        features, _ = synthetic
        scaled = fit(features, feature_names=tuple("abcdef")).apply(features)
        assert scaled.dtype == np.float32
        present = ~np.isnan(features)
        for column in range(6):
            values = scaled[present[:, column], column]
            assert values.mean() == pytest.approx(0, abs=1e-5)
            assert values.std() == pytest.approx(1, abs=1e-4)

    def test_a_missing_value_becomes_the_mean_which_is_0(self):
        fitted = fit(np.array([[1.0, 5.0], [3.0, np.nan]]), feature_names=NAMES)
        assert fitted.apply(np.array([[np.nan, np.nan]])).tolist() == [[0.0, 0.0]]

    def test_a_constant_feature_stays_at_0(self):
        fitted = fit(np.array([[1.0, 5.0], [3.0, 5.0]]), feature_names=NAMES)
        assert fitted.apply(np.array([[2.0, 5.0]])).tolist() == [[0.0, 0.0]]

    def test_a_constant_that_no_binary_fraction_is_stays_at_0_too(self):
        fitted = fit(np.full((3, 1), 0.1), feature_names=("a",))
        assert fitted.apply(np.array([[0.1]])).tolist() == [[0.0]]
        assert fitted.scales.tolist() == [1.0]

    def test_a_feature_that_is_always_missing_is_named(self):
        with pytest.raises(TrainingDataError, match="missing in every training row: b"):
            fit(np.array([[1.0, np.nan], [3.0, np.nan]]), feature_names=NAMES)

    def test_an_infinite_value_is_refused(self):
        with pytest.raises(TrainingDataError, match="infinite values in a"):
            fit(np.array([[np.inf, 1.0], [3.0, 2.0]]), feature_names=NAMES)

    def test_it_rounds_once_at_the_end(self):
        # In float32 the difference of these two large numbers would be 0.
        fitted = Preprocessing(means=np.array([1e9]), scales=np.array([1.0]))
        assert fitted.apply(np.array([[1e9 + 1]])).tolist() == [[1.0]]

    @pytest.mark.parametrize("imputation", ["mean", "median"])
    def test_many_rows_come_out_as_one_by_one(self, imputation):
        rng = np.random.default_rng(0)
        rows = rng.normal(5, 3, size=(9_001, 3))
        rows[rng.random(rows.shape) < 0.1] = np.nan
        policy = PreprocessingPolicy(imputation=imputation)
        fitted = fit(rows, feature_names=("a", "b", "c"), policy=policy)
        filled = np.where(np.isnan(rows), fitted.filling, rows)
        expected = ((filled - fitted.means) / fitted.scales).astype(np.float32)
        np.testing.assert_array_equal(fitted.apply(rows), expected)

    @pytest.mark.parametrize("num_rows", [1, 64, 200, 256, 257, 300, 1030, 9_001])
    def test_scaled_in_the_features_own_memory_they_are_the_same_numbers(
        self, num_rows, monkeypatch
    ):
        def last_first(num_rows, work, *, start=0):
            for block in reversed(list(row_blocks.blocks(num_rows))):
                work(slice(start + block.start, start + block.stop))

        # Many blocks of few rows, in the order in which threads would do the most harm: each
        # one's columns come to lie where others were.
        monkeypatch.setattr(row_blocks, "ROWS_PER_BLOCK", 256)
        monkeypatch.setattr(preprocessing, "ROWS_PER_BLOCK", 256)
        monkeypatch.setattr(preprocessing, "each_block", last_first)
        rows = np.random.default_rng(0).normal(5, 3, size=(num_rows, 3))
        fitted = fit(rows, feature_names=("a", "b", "c"))
        expected = fitted.apply(rows)
        scaled = fitted.apply_over(rows)
        np.testing.assert_array_equal(scaled, expected)
        assert np.shares_memory(scaled, rows)

    def test_columns_that_have_no_room_there_leave_the_features_as_they_are(self):
        rows = np.array([[1.0, np.nan], [3.0, 4.0]])
        policy = PreprocessingPolicy(missing_flags=True)
        fitted = fit(rows, feature_names=NAMES, policy=policy)
        scaled = fitted.apply_over(rows)
        assert rows[1].tolist() == [3.0, 4.0]
        assert scaled.shape == (2, 3)

    def test_rows_that_lack_nothing_give_the_same_numbers_as_where_what_lacks_is_left_out(self):
        rows = np.random.default_rng(0).gamma(2.0, 30.0, size=(5_000, 4))
        fitted = fit(rows, feature_names=("a", "b", "c", "d"))
        np.testing.assert_allclose(fitted.means, np.nanmean(rows, axis=0), rtol=1e-13)
        np.testing.assert_allclose(fitted.scales, np.nanstd(rows, axis=0), rtol=1e-13)


class TestScaling:
    ROWS = np.array([[0.0], [1.0], [2.0], [3.0], [10.0]])

    @pytest.mark.parametrize(
        ("scaling", "expected"),
        [
            ("min_max", [0.0, 0.1, 0.2, 0.3, 1.0]),
            ("robust", [-1.0, -0.5, 0.0, 0.5, 4.0]),
            ("none", [0.0, 1.0, 2.0, 3.0, 10.0]),
        ],
    )
    def test_each_way_is_what_it_says(self, scaling, expected):
        fitted = fit(self.ROWS, feature_names=("a",), policy=PreprocessingPolicy(scaling=scaling))
        np.testing.assert_allclose(fitted.apply(self.ROWS)[:, 0], expected, rtol=1e-6)

    @pytest.mark.parametrize("scaling", ["standard", "min_max", "robust", "none"])
    def test_a_constant_feature_stays_finite(self, scaling):
        policy = PreprocessingPolicy(scaling=scaling)
        rows = np.full((3, 1), 7.0)
        assert np.isfinite(fit(rows, feature_names=("a",), policy=policy).apply(rows)).all()


class TestImputation:
    ROWS = np.array([[1.0], [2.0], [9.0], [np.nan]])

    @pytest.mark.parametrize(
        ("imputation", "fill"), [("mean", 4.0), ("median", 2.0), ("zero", 0.0)]
    )
    def test_a_missing_value_becomes(self, imputation, fill):
        policy = PreprocessingPolicy(imputation=imputation, scaling="none")
        fitted = fit(self.ROWS, feature_names=("a",), policy=policy)
        assert fitted.apply(np.array([[np.nan]])).tolist() == [[fill]]

    def test_a_flag_tells_of_absence_where_training_rows_had_it(self):
        rows = np.array([[1.0, 5.0], [np.nan, 7.0]])
        policy = PreprocessingPolicy(scaling="none", missing_flags=True)
        fitted = fit(rows, feature_names=NAMES, policy=policy)
        assert fitted.apply(np.array([[np.nan, np.nan]])).tolist() == [[1.0, 6.0, 1.0]]
        assert fitted.apply(np.array([[3.0, 5.0]])).tolist() == [[3.0, 5.0, 0.0]]


class TestCategories:
    POLICY = PreprocessingPolicy(scaling="none", categories=("b",), max_categories=2)
    ROWS = np.array(
        [[1.0, 30.0], [2.0, 30.0], [3.0, 20.0], [4.0, 20.0], [5.0, 10.0], [6.0, np.nan]]
    )

    def test_the_most_frequent_codes_get_a_column_each(self):
        fitted = fit(self.ROWS, feature_names=NAMES, policy=self.POLICY)
        assert fitted.num_columns == 3
        assert fitted.apply(self.ROWS[:3]).tolist() == [[1, 0, 1], [2, 0, 1], [3, 1, 0]]

    @pytest.mark.parametrize("code", [10.0, 99.0, np.nan])
    def test_a_rare_an_unseen_and_a_missing_code_have_none(self, code):
        fitted = fit(self.ROWS, feature_names=NAMES, policy=self.POLICY)
        assert fitted.apply(np.array([[1.0, code]])).tolist() == [[1.0, 0.0, 0.0]]

    def test_a_feature_that_there_is_not_is_told_with_the_nearest(self):
        policy = PreprocessingPolicy(categories=("station_cod",))
        with pytest.raises(NotFoundError, match="did you mean 'station_code'"):
            fit(np.zeros((2, 1)), feature_names=("station_code",), policy=policy)

    def test_a_feature_named_twice_is_refused_where_it_is_declared(self):
        with pytest.raises(ValidationError, match="names a feature twice"):
            PreprocessingPolicy(categories=("a", "a"))


class TestComponents:
    def fitted(self, rows, num):
        names = tuple(f"f{n}" for n in range(rows.shape[1]))
        return fit(rows, feature_names=names, policy=PreprocessingPolicy(num_components=num))

    def test_they_are_those_of_scikit_learn_up_to_their_sign(self):
        from sklearn.decomposition import PCA

        rows = np.random.default_rng(0).normal(size=(400, 5)) @ np.diag([5, 3, 2, 1, 0.5])
        rows[:, 1] += rows[:, 0]
        scaled = (rows - rows.mean(axis=0)) / rows.std(axis=0)
        expected = PCA(n_components=3).fit_transform(scaled)
        got = self.fitted(rows, 3).apply(rows)
        np.testing.assert_allclose(np.abs(got), np.abs(expected), atol=1e-5)

    def test_their_signs_are_the_same_in_every_fit(self):
        rows = np.random.default_rng(1).normal(size=(100, 4))
        rows[:, 3] = rows[:, 0] * 2
        largest = self.fitted(rows, 4).projection.components
        assert (largest[np.abs(largest).argmax(axis=0), range(4)] > 0).all()

    def test_more_than_columns_are_refused(self):
        with pytest.raises(TrainingDataError, match="3 principal components of 2 columns"):
            self.fitted(np.eye(2), 3)


@pytest.mark.parametrize(
    "policy",
    [
        PreprocessingPolicy(),
        PreprocessingPolicy(imputation="median", scaling="robust", missing_flags=True),
        PreprocessingPolicy(categories=("e",), num_components=4),
    ],
)
def test_it_survives_json_exactly(synthetic, policy):
    features, _ = synthetic
    fitted = fit(features, feature_names=tuple("abcdef"), policy=policy)
    read = Preprocessing.from_json(json.loads(json.dumps(fitted.to_json())))
    np.testing.assert_array_equal(read.apply(features), fitted.apply(features))


def test_without_a_policy_it_is_stored_as_means_and_scales_alone(synthetic):
    features, _ = synthetic
    fitted = fit(features, feature_names=tuple("abcdef"))
    assert fitted.to_json().keys() == {"means", "scales"}
