from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.limits import Breaker, RateLimit


class TestRateLimit:
    def test_after_a_second_of_silence_a_seconds_worth_may_come_at_once(self):
        limit = RateLimit(3)
        assert [limit.wait_s(0.0) for _ in range(3)] == [0, 0, 0]
        assert limit.wait_s(0.0) > 0
        assert [limit.wait_s(1.0) for _ in range(3)] == [0, 0, 0]

    def test_it_says_when_the_next_one_may_come(self):
        limit = RateLimit(0.5)
        assert limit.wait_s(10.0) == 0
        assert limit.wait_s(10.0) == 2
        assert limit.wait_s(11.0) == 1
        assert limit.wait_s(12.0) == 0

    @given(
        st.floats(0.1, 50),
        st.lists(st.floats(0, 2, allow_nan=False), min_size=1, max_size=200),
    )
    def test_in_any_time_no_more_come_in_than_the_rate_and_one_seconds_worth(self, per_s, pauses_s):
        limit, now_s, let_in = RateLimit(per_s), 0.0, 0
        for pause_s in pauses_s:
            now_s += pause_s
            let_in += limit.wait_s(now_s) == 0
        assert let_in <= max(per_s, 1) + per_s * now_s + 1e-6

    @given(st.floats(0.1, 50), st.lists(st.floats(0, 2, allow_nan=False), max_size=50))
    def test_who_waits_as_told_is_let_in(self, per_s, pauses_s):
        limit, now_s = RateLimit(per_s), 0.0
        for pause_s in pauses_s:
            now_s += pause_s
            if (wait_s := limit.wait_s(now_s)) > 0:
                now_s += wait_s + 1e-6
                assert limit.wait_s(now_s) == 0


class TestBreaker:
    def test_one_row_that_has_no_score_breaks_nothing(self):
        breaker = Breaker(break_after=3)
        for _ in range(10):
            breaker.count(has_score=False, now_s=0.0)
            breaker.count(has_score=False, now_s=0.0)
            breaker.count(has_score=True, now_s=0.0)
        assert breaker.lets_in(0.0)

    def test_a_model_without_a_score_for_anybody_is_tried_once_in_a_while(self):
        breaker = Breaker(break_after=3, try_again_s=1.0)
        for _ in range(3):
            assert breaker.lets_in(0.0)
            breaker.count(has_score=False, now_s=0.0)
        assert [breaker.lets_in(now_s) for now_s in (0.5, 1.0, 1.5, 2.0)] == [
            False,
            True,
            False,
            True,
        ]

    def test_one_score_and_all_is_well(self):
        breaker = Breaker(break_after=1)
        breaker.count(has_score=False, now_s=0.0)
        assert breaker.lets_in(1.0)
        breaker.count(has_score=True, now_s=1.0)
        assert all(breaker.lets_in(1.0) for _ in range(9))
