from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.ab_policy import Evidence, decide_ab, next_look_s
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.outcomes import OutcomeName
from penstock.serving.rollout import Decision, RolloutPlan
from penstock.serving.sequential import MIN_UNITS, ArmMoments

HOUR_S = 3_600.0
NOTHING = ArmCounts()


def plan_of(outcome: OutcomeName = "brier", **changes: Any) -> RolloutPlan:
    standard = {
        "model": "spills",
        "mode": "ab",
        "from_version": 1,
        "to_version": 2,
        "shares_percent": (50,),
        "hold_s": HOUR_S,
        "split_by": "STATION",
        "outcome": outcome,
    }
    return RolloutPlan.model_validate({**standard, **changes})


def arm(mean: float, *, units: int = 400) -> ArmMoments:
    return ArmMoments(
        num_units=units, num_outcomes=2 * units, mean=mean, variance=1, outcome_variance=1
    )


def evidence(new: ArmMoments, old: ArmMoments, plan: RolloutPlan | None = None) -> Evidence:
    return Evidence.of(
        plan or plan_of(), new=new, old=old, num_predictions=(900, 901), looked_s=60.0
    )


def decided(found: Evidence | None, plan: RolloutPlan | None = None, **changes: Any) -> Decision:
    standard = {
        "held_s": 60.0,
        "new": NOTHING,
        "old": NOTHING,
        "evidence": found,
        "is_last_look": False,
    }
    return decide_ab(plan or plan_of(), **{**standard, **changes})


class TestEvidence:
    @pytest.mark.parametrize(
        ("outcome", "is_new_better"), [("brier", False), ("accuracy", True), ("less_truth", False)]
    )
    def test_more_is_better_or_worse_as_the_outcome_says(self, outcome, is_new_better):
        plan = plan_of(outcome)
        assert evidence(arm(1), arm(0), plan).is_new_better is is_new_better
        assert evidence(arm(0), arm(1), plan).is_new_better is not is_new_better

    def test_without_enough_nobody_is_better_and_the_missing_are_counted(self):
        found = evidence(arm(1, units=MIN_UNITS - 10), arm(0, units=MIN_UNITS - 1))
        assert (found.is_new_better, found.num_units_missing) == (None, 11)
        assert "100 each that differ are needed" in found.words()

    def test_it_says_how_many_units_would_decide(self):
        assert evidence(arm(1), arm(0)).num_units_missing == 0
        assert 100 < evidence(arm(0.15), arm(0)).num_units_missing < 5_000
        assert evidence(arm(0), arm(0)).num_units_missing is None

    def test_its_words_have_both_means_and_the_interval(self):
        words = evidence(arm(0.1), arm(0.05)).words()
        assert words.startswith("brier 0.1 against 0.05, difference +0.05 [-0.")
        assert words.endswith("400 and 400 units with a truth")


class TestDecide:
    def test_the_new_version_goes_on_alone_where_it_is_better(self):
        decision = decided(evidence(arm(0), arm(1)))
        assert decision.action == "finish"
        assert decision.reason.startswith("version 2 is better: brier 0 against 1")

    def test_the_old_one_stays_where_it_is_better(self):
        decision = decided(evidence(arm(1), arm(0)))
        assert decision.action == "back"
        assert decision.reason.startswith("version 1 is better: brier 1 against 0")

    def test_undecided_it_waits(self):
        assert decided(None).reason == "59m to go at most"
        assert decided(evidence(arm(0.01), arm(0))).action == "hold"

    def test_when_the_time_is_over_it_looks_once_more_and_then_goes_back(self):
        found = evidence(arm(0.01), arm(0))
        late = {"held_s": HOUR_S}
        assert decided(found, **late).reason == "a last look at the truths"
        decision = decided(found, is_last_look=True, **late)
        assert decision.action == "back"
        assert decision.reason.startswith("no difference found: in 1h, brier 0.01 against 0")
        assert "no truth was read" in decided(None, is_last_look=True, **late).reason

    def test_what_the_last_look_finds_still_counts(self):
        found = evidence(arm(0), arm(1))
        assert decided(found, held_s=HOUR_S, is_last_look=True).action == "finish"

    @given(st.sampled_from([None, (0.0, 1.0), (1.0, 0.0)]), st.booleans(), st.floats(0, 10**6))
    def test_a_broken_guard_goes_back_whatever_the_truths_say(self, means, is_last_look, held_s):
        found = means and evidence(arm(means[0]), arm(means[1]))
        decision = decided(
            found, new=ArmCounts(num_errors=2), is_last_look=is_last_look, held_s=held_s
        )
        assert decision.action == "back"
        assert decision.reason.startswith("error_rate<0.01 is broken")
        asked = decided(found, asked_back="alerts", is_last_look=is_last_look, held_s=held_s)
        assert (asked.action, asked.reason) == ("back", "alerts")


class TestNextLook:
    def test_it_comes_soon_at_first_and_then_with_the_time_that_has_gone_by(self):
        assert next_look_s(0, 1) == 30
        assert next_look_s(86_400, 1) == 86_400 * 1.01

    def test_looking_takes_a_tenth_of_the_time_at_most(self):
        assert next_look_s(100, 60) == 700
