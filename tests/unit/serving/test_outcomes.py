import math

import polars as pl
import pytest

from penstock.errors import NotFoundError, UserError
from penstock.serving.outcomes import OUTCOMES, check_outcome, moments

LIMITS = {1: 0.5, 2: 0.9}


def rows(*told: tuple[bool, str, int, float, float]) -> pl.DataFrame:
    names = ("is_new", "unit", "model_version", "score", "truth")
    return pl.DataFrame(told, schema=names, orient="row")


class TestMoments:
    @pytest.mark.parametrize(
        ("outcome", "expected"),
        [
            ("log_loss", -math.log(0.8)),
            ("brier", 0.2**2),
            ("accuracy", 0.0),
            ("absolute_error", 0.2),
            ("squared_error", 0.2**2),
            ("truth", 1.0),
            ("less_truth", 1.0),
        ],
    )
    def test_each_outcome_is_of_a_score_and_its_truth(self, outcome: str, expected: float):
        # At version 2's own threshold a score of 0.8 is no positive.
        new, _ = moments(rows((True, "a", 2, 0.8, 1.0)), outcome, LIMITS)
        assert new.mean == pytest.approx(expected)

    def test_there_is_one_for_every_name(self):
        for outcome in OUTCOMES:
            new, _ = moments(rows((True, "a", 2, 0.8, 1.0)), outcome, LIMITS)
            assert new.num_outcomes == 1

    def test_a_version_that_answers_for_the_other_decides_by_its_own_threshold(self):
        new, _ = moments(rows((True, "a", 1, 0.8, 1.0)), "accuracy", LIMITS)
        assert new.mean == 1

    def test_a_certain_score_that_is_wrong_costs_no_infinity(self):
        new, _ = moments(rows((True, "a", 2, 0.0, 1.0)), "log_loss", LIMITS)
        assert new.mean == pytest.approx(13.8, abs=0.1)

    def test_a_unit_with_many_predictions_counts_once(self):
        told = [(True, "a", 2, 0.5, 1.0)] * 9 + [(True, "b", 2, 0.5, 0.0)]
        new, old = moments(rows(*told), "truth", LIMITS)
        assert (new.num_units, new.num_outcomes, new.mean) == (2, 10, 0.5)
        assert new.variance == 0.5
        assert new.outcome_variance == pytest.approx(0.1)
        assert (old.num_units, old.mean, old.variance) == (0, 0, 0)


class TestCheck:
    def test_what_fits_the_model_passes(self):
        assert check_outcome("brier", is_binary=True, thresholds={1: None}) == "brier"
        assert check_outcome("absolute_error", is_binary=False, thresholds={}) == "absolute_error"
        assert check_outcome("truth", is_binary=True, thresholds={}) == "truth"
        assert check_outcome("truth", is_binary=False, thresholds={}) == "truth"

    def test_an_unknown_one_gets_the_nearest(self):
        with pytest.raises(NotFoundError, match="did you mean 'brier'"):
            check_outcome("briar", is_binary=True, thresholds={})

    def test_one_of_another_task_is_refused(self):
        with pytest.raises(UserError, match=r"its truth is 0 or 1.*log_loss, brier"):
            check_outcome("squared_error", is_binary=True, thresholds={})
        with pytest.raises(UserError, match=r"its truth is any number.*absolute_error"):
            check_outcome("brier", is_binary=False, thresholds={})

    def test_accuracy_needs_a_threshold_of_both(self):
        with pytest.raises(UserError, match="version 2 has no threshold"):
            check_outcome("accuracy", is_binary=True, thresholds={1: 0.5, 2: None})
