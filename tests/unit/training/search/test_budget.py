"""What a search may spend."""

from penstock.training.search.budget import Budget


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
