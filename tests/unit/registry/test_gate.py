import functools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.registry import gate
from penstock.training.declarations import GatePolicy, LeakAlarm, MetricBound

POLICY = GatePolicy(metric="average_precision", min_gain=0.01)
decide = functools.partial(gate.decide, higher_is_better=True)
scores = st.floats(0, 1)
gains = st.floats(-0.2, 0.2)


def ap(value: float) -> dict[str, float]:
    return {"average_precision": value}


class TestDecide:
    @pytest.mark.parametrize(
        ("champion", "challenger", "passed"),
        [(0.61, 0.62, True), (0.61, 0.6199, False), (0.61, 0.61, False), (0.61, 0.5, False)],
    )
    def test_a_challenger_needs_the_declared_gain(self, champion, challenger, passed):
        assert decide(ap(champion), ap(challenger), POLICY).passed is passed

    def test_the_first_champion_has_nobody_to_beat(self):
        decision = decide(None, ap(0.1), POLICY)
        assert decision.passed
        assert "no champion to beat" in decision.reason

    def test_where_lower_is_better_the_gain_turns_round(self):
        policy = GatePolicy(metric="log_loss", min_gain=0.01)
        low, high = {"log_loss": 0.4}, {"log_loss": 0.5}
        assert decide(high, low, policy, higher_is_better=False).passed
        assert not decide(low, high, policy, higher_is_better=False).passed

    def test_a_negative_gain_lets_a_slightly_worse_one_in(self):
        policy = GatePolicy(metric="average_precision", min_gain=-0.02)
        assert decide(ap(0.61), ap(0.60), policy).passed
        assert not decide(ap(0.61), ap(0.58), policy).passed

    def test_a_bound_holds_whatever_the_champion_is_like(self):
        policy = GatePolicy(
            metric="average_precision",
            bounds=(
                MetricBound(metric="roc_auc", at_least=0.8),
                MetricBound(metric="log_loss", at_most=0.1),
            ),
        )
        good = {"average_precision": 0.9, "roc_auc": 0.8, "log_loss": 0.1}
        assert decide(None, good, policy).passed
        low = decide(None, {**good, "roc_auc": 0.79}, policy)
        assert not low.passed
        assert "roc_auc 0.7900 breaks the bound: at least 0.8" in low.reason
        assert not decide(None, {**good, "log_loss": 0.11}, policy).passed

    def test_a_metric_too_good_to_be_true_is_a_leak(self):
        alarm = LeakAlarm(metric="average_precision", max_plausible=0.75)
        assert decide(ap(0.6), ap(0.75), POLICY, leak_alarm=alarm).passed
        decision = decide(ap(0.6), ap(0.993), POLICY, leak_alarm=alarm)
        assert not decision.passed
        assert "not plausible" in decision.reason

    def test_an_error_too_small_to_be_true_is_a_leak(self):
        alarm = LeakAlarm(metric="mean_absolute_error", min_plausible=1.5)
        policy = GatePolicy(metric="mean_absolute_error")
        for error, passed in ((1.5, True), (1.49, False)):
            decision = gate.decide(
                None,
                {"mean_absolute_error": error},
                policy,
                higher_is_better=False,
                leak_alarm=alarm,
            )
            assert decision.passed is passed
        assert "at least 1.5" in decision.reason

    def test_the_evidence_of_every_rule_is_kept(self):
        policy = GatePolicy(
            metric="average_precision", bounds=(MetricBound(metric="roc_auc", at_least=0.8),)
        )
        alarm = LeakAlarm(max_plausible=0.75)
        decision = decide(ap(0.6), ap(0.7), policy, leak_alarm=alarm)
        assert [(e.rule, e.passed) for e in decision.evidence] == [
            ("leak_alarm", True),
            ("bound", False),
            ("gain", True),
        ]


class TestLaws:
    @given(champion=st.none() | scores, challenger=scores, better=scores, gain=gains)
    def test_a_better_challenger_passes_where_a_worse_one_does(
        self, champion, challenger, better, gain
    ):
        policy = GatePolicy(metric="average_precision", min_gain=gain)
        before = None if champion is None else ap(champion)
        if better >= challenger and decide(before, ap(challenger), policy).passed:
            assert decide(before, ap(better), policy).passed

    @given(one=scores, other=scores, gain=st.floats(1e-6, 0.2))
    def test_two_models_never_each_replace_the_other(self, one, other, gain):
        policy = GatePolicy(metric="average_precision", min_gain=gain)
        forth = decide(ap(one), ap(other), policy).passed
        back = decide(ap(other), ap(one), policy).passed
        assert not (forth and back)

    @given(
        champion=st.none() | scores,
        bad=st.sampled_from([None, math.nan, math.inf, -math.inf]),
        gain=gains,
        higher=st.booleans(),
    )
    def test_an_unknown_metric_never_passes(self, champion, bad, gain, higher):
        policy = GatePolicy(metric="average_precision", min_gain=gain)
        metrics = {} if bad is None else ap(bad)
        before = None if champion is None else ap(champion)
        assert not decide(before, metrics, policy, higher_is_better=higher).passed
        if champion is not None:
            assert not decide(metrics, ap(champion), policy, higher_is_better=higher).passed

    @given(
        champion=st.none() | scores,
        value=st.floats(allow_nan=True, allow_infinity=True),
        low=scores,
        high=scores,
    )
    def test_nothing_outside_its_bound_passes_and_the_reason_says_so(
        self, champion, value, low, high
    ):
        bound = MetricBound(metric="average_precision", at_least=low, at_most=high)
        policy = GatePolicy(metric="average_precision", min_gain=-1, bounds=(bound,))
        decision = decide(None if champion is None else ap(champion), ap(value), policy)
        assert decision.passed is (math.isfinite(value) and low <= value <= high)
        assert decision.passed is all(item.passed for item in decision.evidence)
        assert decision.reason
