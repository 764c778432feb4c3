"""What a search may spend."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.training.search.budget import Budget, as_duration, parse_duration


class TestDuration:
    @pytest.mark.parametrize(
        ("text", "seconds"), [("90s", 90), ("20m", 1200), ("1h30m", 5400), ("1h0m5s", 3605)]
    )
    def test_it_is_read_as_people_write_it(self, text, seconds):
        assert parse_duration(text) == seconds

    @pytest.mark.parametrize("text", ["", "20", "0s", "m", "-5m", "1.5h", "5m1h"])
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(UserError, match="no duration"):
            parse_duration(text)

    @given(st.integers(120, 10**6))
    def test_what_is_written_reads_back(self, seconds):
        assert parse_duration(as_duration(seconds)) == seconds


class TestBudget:
    def test_no_limit_is_never_reached(self):
        assert Budget().spent(time_s=1e9, money=1e9) is None
        assert not Budget().is_full(10**6)

    def test_each_limit_ends_the_search_and_says_so(self):
        budget = Budget(num_trials=3, time_s=60, money=0.5)
        assert budget.is_full(3)
        assert "time of 60s" in budget.spent(time_s=60, money=0)
        assert "money of 0.5" in budget.spent(time_s=0, money=0.5)
        assert budget.left_s(45) == 15
