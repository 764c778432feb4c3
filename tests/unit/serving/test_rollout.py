import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from penstock.errors import NotFoundError, UserError
from penstock.serving.arm_counts import ArmCounts, latency_bucket
from penstock.serving.rollout import (
    MEASURES,
    NUM_BUCKETS,
    Guard,
    RolloutPlan,
    bucket,
    decide,
    judge,
    parse_guards,
    parse_shares,
)

NOTHING = ArmCounts()
GUARDS = st.builds(
    Guard,
    measure=st.sampled_from(sorted(MEASURES)),
    limit=st.floats(0, allow_infinity=False, allow_nan=False),
)
COUNTS = st.builds(
    ArmCounts,
    num_answers=st.integers(0, 500),
    num_errors=st.integers(0, 500),
    num_rows=st.integers(0, 500),
    num_rows_missing=st.integers(0, 500),
    sum_score=st.floats(0, 500),
    sum_score_squared=st.floats(0, 500),
    num_pairs=st.integers(0, 500),
    sum_difference=st.floats(0, 500),
    num_flips=st.integers(0, 500),
    latencies=st.dictionaries(st.integers(0, 280), st.integers(1, 100), max_size=4),
)


def plan_of(**changes: Any) -> RolloutPlan:
    standard = {
        "model": "spills",
        "from_version": 1,
        "to_version": 2,
        "shares_percent": (5, 25, 100),
        "hold_s": 60,
        "split_by": "STATION",
    }
    return RolloutPlan.model_validate({**standard, **changes})


def shadow_of(**changes: Any) -> RolloutPlan:
    return plan_of(**{"mode": "shadow", "shares_percent": (), **changes})


def answers(number: int, *, slow: int = 0, ms: float = 1.0, slow_ms: float = 900.0) -> ArmCounts:
    latencies = {latency_bucket(ms): number - slow, latency_bucket(slow_ms): slow}
    return ArmCounts(num_answers=number, latencies=latencies)


def scores(mean: float, *, rows: int = 1000, deviation: float = 0.1) -> ArmCounts:
    squared = (mean**2 + deviation**2) * rows
    return ArmCounts(num_rows=rows, sum_score=mean * rows, sum_score_squared=squared)


def is_broken(guard: str, new: ArmCounts, old: ArmCounts = NOTHING) -> bool:
    return judge(Guard.parse(guard), new=new, old=old) is not None


class TestGuard:
    @given(GUARDS)
    def test_what_is_written_reads_back(self, guard: Guard):
        assert Guard.parse(str(guard)) == guard

    @pytest.mark.parametrize(
        "text", ["p99_ms", "p99_ms>5", "p99_ms<", "p99_ms<.", "p99_ms<-1", "p99_ms<1e999", "<5", ""]
    )
    def test_what_is_none_is_refused_with_the_form(self, text: str):
        with pytest.raises(UserError, match="as in p99_ms<50"):
            Guard.parse(text)

    def test_for_an_unknown_measure_the_nearest_is_offered(self):
        with pytest.raises(NotFoundError, match="did you mean 'p99_ms'"):
            Guard.parse("p9_ms<5")

    def test_a_list_may_have_commas_and_an_empty_one_is_the_standard(self):
        read = parse_guards(["p99_ms < 50,error_rate<0.001", "flip_rate<0.1"])
        assert [*map(str, read)] == ["p99_ms<50", "error_rate<0.001", "flip_rate<0.1"]
        assert [*map(str, parse_guards([]))] == ["error_rate<0.01"]


class TestShares:
    def test_they_are_read_as_numbers(self):
        assert parse_shares("0.5,25,100") == (0.5, 25, 100)

    @pytest.mark.parametrize("text", ["", "5;25", "all", "5,"])
    def test_what_is_no_number_is_refused(self, text: str):
        with pytest.raises(UserError, match="no numbers"):
            parse_shares(text)


class TestPlan:
    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"shares_percent": ()}, "shares are percent"),
            ({"shares_percent": (0, 50)}, "shares are percent"),
            ({"shares_percent": (50, 101)}, "shares are percent"),
            ({"shares_percent": (math.nan,)}, "shares are percent"),
            ({"shares_percent": (25, 25)}, "above the one before"),
            ({"mode": "shadow"}, "has no share"),
            ({"guards": parse_guards(["flip_rate<0.1"])}, "a shadow has only"),
            ({"hold_s": math.inf}, "finite"),
            ({"answer_within_ms": 0}, "greater than 0"),
            ({"outcome": "brier"}, "decided by an outcome"),
            ({"mode": "ab", "shares_percent": (50,)}, "decided by an outcome"),
            ({"mode": "ab", "outcome": "brier", "shares_percent": (5, 50)}, "one share"),
            ({"mode": "ab", "outcome": "brier", "shares_percent": (100,)}, "below 100"),
            ({"mode": "shadow", "shares_percent": (), "outcome": "brier"}, "has no outcome"),
            ({"alpha": 0.9}, "less than or equal to 0.5"),
        ],
    )
    def test_what_contradicts_itself_is_refused(self, changes: dict[str, Any], words: str):
        with pytest.raises(ValidationError, match=words):
            plan_of(**changes)

    def test_a_canary_says_each_share_and_a_shadow_that_it_answers_nobody(self):
        told = "\n".join(plan_of(min_answers=20).steps())
        assert "25 % of STATION to version 2; hold 60s and 20 answers of it" in told
        assert "error_rate<0.01, else version 1 answers everything" in told
        told = "\n".join(shadow_of(guards=()).steps())
        assert "version 2 scores what version 1 answers, and answers nobody" in told
        assert "no guard" in told
        assert "% of" not in told

    def test_an_ab_says_by_what_and_until_when(self):
        plan = plan_of(mode="ab", outcome="brier", shares_percent=(20,), hold_s=14 * 86_400)
        told = "\n".join(plan.steps())
        assert "20 % of STATION to version 2\n" in told
        assert "by brier, the squared distance of score and truth: once for each STATION" in told
        assert "alpha 0.05, at every moment" in told
        assert "undecided after 14d: by those of version 1" in told
        assert "error_rate<0.01, else version 1 answers everything" in told

    def test_a_shadow_is_one_stage_without_a_share(self):
        assert (shadow_of().num_stages, shadow_of().share_percent(0)) == (1, 0.0)
        assert (plan_of().num_stages, plan_of().share_percent(1)) == (3, 25.0)

    def test_it_survives_its_way_into_a_job(self):
        plan = plan_of(guards=parse_guards(["p99_ms<50"]), shares_percent=(0.1, 33.3))
        assert RolloutPlan.model_validate_json(plan.model_dump_json()) == plan


class TestDecide:
    @given(st.lists(GUARDS, min_size=1, max_size=3), COUNTS, COUNTS, st.floats(0, 10**6))
    def test_a_broken_guard_never_goes_on(self, guards, new, old, held_s):
        plan = shadow_of(guards=tuple(guards))
        decision = decide(plan, stage=0, held_s=held_s, new=new, old=old)
        broken = [guard for guard in guards if judge(guard, new=new, old=old) is not None]
        assert (decision.action == "back") == bool(broken)
        if broken:
            assert str(broken[0]) in decision.reason

    @given(COUNTS, COUNTS, st.floats(0, 10**6))
    def test_whoever_asks_for_the_way_back_gets_it(self, new, old, held_s):
        asked = decide(plan_of(), stage=0, held_s=held_s, new=new, old=old, asked_back="alerts")
        assert (asked.action, asked.reason) == ("back", "alerts")

    @pytest.mark.parametrize(
        ("stage", "held_s", "num_answers", "action", "words"),
        [
            (0, 59.5, 10, "hold", "1s to go"),
            (0, 60, 9, "hold", "9 of 10 answers"),
            (0, 60, 10, "advance", "every guard held"),
            (1, 60, 10, "advance", "every guard held"),
            (2, 60, 10, "finish", "every guard held"),
        ],
    )
    def test_a_share_stays_for_its_time_and_its_answers(
        self, stage, held_s, num_answers, action, words
    ):
        decision = decide(
            plan_of(min_answers=10),
            stage=stage,
            held_s=held_s,
            new=answers(num_answers),
            old=NOTHING,
        )
        assert decision.action == action
        assert words in decision.reason

    def test_a_guard_is_judged_before_the_time_is_over(self):
        broken = ArmCounts(num_errors=2)
        assert decide(plan_of(), stage=0, held_s=0, new=broken, old=NOTHING).action == "back"


class TestJudge:
    def test_a_single_failure_of_few_breaks_nothing_that_they_cannot_tell(self):
        def failed(of: int, number: int) -> ArmCounts:
            return ArmCounts(num_answers=of - number, num_errors=number)

        assert not is_broken("error_rate<0.01", failed(10, 1))
        assert is_broken("error_rate<0.01", failed(10, 2))
        assert not is_broken("error_rate<0.01", failed(1000, 10))
        assert is_broken("error_rate<0.01", failed(1000, 11))
        assert is_broken("error_rate<0", failed(1000, 1))
        assert not is_broken("error_rate<0", failed(1000, 0))
        assert is_broken("error_rate<1e-320", failed(1000, 1))

    def test_a_single_slow_one_of_few_breaks_nothing_that_they_cannot_tell(self):
        assert not is_broken("p99_ms<50", answers(10, slow=1))
        assert is_broken("p99_ms<50", answers(10, slow=2))
        assert not is_broken("p99_ms<50", answers(1000, slow=10))
        assert is_broken("p99_ms<50", answers(1000, slow=11))
        assert not is_broken("p50_ms<50", answers(10, slow=5))
        assert is_broken("p50_ms<50", answers(10, slow=6))

    def test_rows_that_lack_a_feature_are_counted_of_all_rows(self):
        assert is_broken("missing_rate<0.1", ArmCounts(num_rows=100, num_rows_missing=11))
        assert not is_broken("missing_rate<0.1", ArmCounts(num_rows=100, num_rows_missing=10))

    def test_a_shadows_scores_are_held_against_those_that_were_answered(self):
        apart = ArmCounts(num_pairs=100, sum_difference=20.0, num_flips=30)
        assert is_broken("score_difference<0.19", apart)
        assert not is_broken("score_difference<0.21", apart)
        assert is_broken("flip_rate<0.29", apart)
        assert not is_broken("flip_rate<0.31", apart)
        assert not is_broken("score_difference<0", NOTHING)

    def test_the_scores_shift_in_deviations_of_the_old(self):
        assert is_broken("score_shift<0.9", scores(0.6), scores(0.5))
        assert not is_broken("score_shift<1.1", scores(0.6), scores(0.5))

    def test_few_rows_say_nothing_of_a_shift(self):
        assert not is_broken("score_shift<0.1", scores(0.9, rows=199), scores(0.1))
        assert not is_broken("score_shift<0.1", scores(0.9), scores(0.1, rows=199))
        assert is_broken("score_shift<0.1", scores(0.9, rows=200), scores(0.1, rows=200))

    def test_where_the_old_scores_never_vary_any_other_mean_is_a_shift(self):
        old = scores(0.5, deviation=0.0)
        assert is_broken("score_shift<100", scores(0.75, deviation=0.0), old)
        assert not is_broken("score_shift<0", scores(0.5, deviation=0.0), old)

    @given(GUARDS)
    def test_silence_breaks_no_guard(self, guard: Guard):
        assert judge(guard, new=NOTHING, old=NOTHING) is None


class TestBucket:
    @given(st.text(), st.one_of(st.integers(), st.text(), st.floats(), st.booleans()))
    def test_a_value_has_one_place_in_every_replica(self, split_id: str, value: object):
        assert bucket(split_id, value) == bucket(split_id, value)
        assert 0 <= bucket(split_id, value) < NUM_BUCKETS

    def test_the_place_does_not_depend_on_the_process(self):
        # Another number here would move callers between versions when one replica is newer.
        assert bucket("r1", 42) == 6046

    def test_a_broken_character_has_a_place_too(self):
        assert 0 <= bucket("r1", "\ud800") < NUM_BUCKETS

    @pytest.mark.parametrize("percent", [1, 5, 25, 50, 99])
    def test_the_share_of_many_values_is_the_percent(self, percent: int):
        num_in = sum(bucket("r1", value) < percent / 100 * NUM_BUCKETS for value in range(20_000))
        # Five deviations of a binomial.
        deviation = math.sqrt(20_000 * percent / 100 * (1 - percent / 100))
        assert abs(num_in - 200 * percent) < 5 * deviation

    def test_the_next_rollout_draws_others(self):
        def taken(split_id: str) -> set[int]:
            return {value for value in range(1000) if bucket(split_id, value) < 500}

        assert taken("r1") != taken("r2")
