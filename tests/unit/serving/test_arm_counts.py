import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.arm_counts import BOUNDS_MS, ArmCounts, latency_bucket

# Whole eighths add up without a rounding error, in whatever order.
EIGHTHS = st.integers(0, 10**6).map(lambda number: number / 8)
COUNTS = st.builds(
    ArmCounts,
    **{
        name: EIGHTHS if name.startswith("sum_") else st.integers(0, 10**6)
        for name in ArmCounts.model_fields
        if name != "latencies"
    },
    latencies=st.dictionaries(st.integers(0, len(BOUNDS_MS)), st.integers(1, 1000), max_size=5),
)


def of_latencies(*latencies_ms: float) -> ArmCounts:
    return ArmCounts.total(ArmCounts(latencies={latency_bucket(ms): 1}) for ms in latencies_ms)


class TestSums:
    @given(COUNTS, COUNTS)
    def test_what_was_added_can_be_taken_off_again(self, before: ArmCounts, since: ArmCounts):
        assert before.plus(since).minus(before) == since

    @given(st.lists(COUNTS, max_size=4), st.data())
    def test_the_order_of_the_replicas_does_not_matter(self, parts: list[ArmCounts], data):
        assert ArmCounts.total(parts) == ArmCounts.total(data.draw(st.permutations(parts)))

    def test_nobody_counted_is_nothing(self):
        assert ArmCounts.total([]) == ArmCounts()

    @given(COUNTS, COUNTS)
    def test_every_field_adds_up(self, one: ArmCounts, other: ArmCounts):
        both = one.plus(other).model_dump(exclude={"latencies"})
        parts = [part.model_dump(exclude={"latencies"}) for part in (one, other)]
        assert both == {name: parts[0][name] + parts[1][name] for name in both}
        assert sum(one.plus(other).latencies.values()) == sum(
            number for part in (one, other) for number in part.latencies.values()
        )


class TestScores:
    def test_mean_and_deviation_are_those_of_the_rows(self):
        counts = ArmCounts(num_rows=4, sum_score=2.0, sum_score_squared=1.5)
        assert counts.mean_score == 0.5
        assert counts.score_deviation == pytest.approx(math.sqrt(0.125))

    def test_without_rows_both_are_zero(self):
        assert (ArmCounts().mean_score, ArmCounts().score_deviation) == (0.0, 0.0)

    def test_scores_that_are_all_the_same_deviate_by_nothing(self):
        # Rounded, the difference of both sums is below zero.
        counts = ArmCounts(num_rows=3, sum_score=0.1 * 3, sum_score_squared=0.1**2 * 3 - 1e-17)
        assert counts.score_deviation == 0.0


class TestLatency:
    @given(st.floats(0.1, BOUNDS_MS[-1]))
    def test_a_latency_is_at_most_five_percent_below_its_buckets_end(self, latency_ms: float):
        end = BOUNDS_MS[latency_bucket(latency_ms)]
        assert latency_ms <= end <= latency_ms * 1.05 * (1 + 1e-9)

    def test_a_quantile_is_that_of_the_answers(self):
        counts = of_latencies(*[1.0] * 98, 500.0, 500.0)
        assert counts.latency_ms(0.5) == pytest.approx(1.0, rel=0.05)
        assert counts.latency_ms(0.99) == pytest.approx(500.0, rel=0.05)

    def test_an_answer_beyond_all_buckets_took_forever(self):
        assert of_latencies(10**6).latency_ms(0.5) == math.inf

    def test_without_answers_there_is_none(self):
        counts = of_latencies(1.0)
        assert math.isnan(ArmCounts().latency_ms(0.5))
        assert math.isnan(counts.minus(counts).latency_ms(0.5))

    @given(st.lists(st.floats(0.01, 10**5), max_size=20), st.floats(0.1, 10**5))
    def test_none_is_counted_as_slower_that_was_not(self, latencies_ms: list[float], limit_ms):
        counts = of_latencies(*latencies_ms)
        assert counts.num_slower_than(limit_ms) <= sum(ms > limit_ms for ms in latencies_ms)
        assert counts.num_slower_than(limit_ms) >= sum(
            ms > limit_ms * 1.06 for ms in latencies_ms if limit_ms < BOUNDS_MS[-1] / 1.06
        )
