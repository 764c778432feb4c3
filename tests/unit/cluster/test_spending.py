from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.cluster.ledger import JobCost
from penstock.cluster.spending import estimate, forecast, lines
from penstock.cluster.usage import Usage
from penstock.prices import CostSettings

PRICES = CostSettings(per_cpu_hour=1.0, per_gpu_hour=10.0, per_gb_hour=0.0)
NOW = datetime(2024, 4, 11, tzinfo=UTC)


def cost(hours: float = 1.0, *, days_ago: float = 0.0, **more) -> JobCost:
    started = NOW - timedelta(days=days_ago)
    facts = {
        "job_id": f"train-{days_ago}-{hours}",
        "kind": "train",
        "use_case": "dam",
        "state": "succeeded",
        "started": started,
        "seen": started + timedelta(hours=hours),
        "usage": Usage(cpu_s=3600 * hours),
    }
    return JobCost(**facts | more)


class TestLines:
    def test_each_use_case_has_its_sum_the_dearest_first(self):
        costs = [cost(1), cost(2), cost(5, use_case=None), cost(0.5, use_case="sea")]
        found = lines(costs, PRICES, by="use case")
        assert [(line.name, line.num_jobs, line.money) for line in found] == [
            ("(none)", 1, 5.0),
            ("dam", 2, 3.0),
            ("sea", 1, 0.5),
        ]

    def test_a_job_that_made_several_versions_is_shared_among_them(self):
        costs = [cost(4, model_versions=("spills 1", "spills 2")), cost(1, model_versions=())]
        found = lines(costs, PRICES, by="model version")
        assert {line.name: line.money for line in found} == {"spills 1": 2.0, "spills 2": 2.0}

    def test_gpus_have_a_price_of_their_own(self):
        (line,) = lines([cost(0, usage=Usage(gpu_s=7200))], PRICES, by="kind")
        assert (line.gpu_hours, line.money) == (2.0, 20.0)


class TestForecast:
    def test_an_even_spending_goes_on(self):
        costs = [cost(1, days_ago=day + 0.5) for day in range(10)]
        # Ten days of thirty have gone, one a day; seven days look back on seven.
        assert forecast(costs, PRICES, now=NOW) == pytest.approx(30.0)

    def test_what_was_spent_in_another_month_counts_for_the_pace_alone(self):
        first = datetime(2024, 4, 1, tzinfo=UTC)
        costs = [
            cost(1).model_copy(update={"started": first - timedelta(days=day + 0.5)})
            for day in range(8)
        ]
        assert forecast(costs, PRICES, now=first) == pytest.approx(30.0)

    def test_one_job_of_a_moment_ago_is_taken_for_a_days_spending(self):
        assert forecast([cost(1, days_ago=0.01)], PRICES, now=NOW) == pytest.approx(1 + 20)

    def test_a_week_without_a_job_is_expected_to_go_on(self):
        assert forecast([cost(3, days_ago=9)], PRICES, now=NOW) == pytest.approx(3.0)
        assert forecast([], PRICES, now=NOW) == 0

    @settings(deadline=None)
    @given(st.lists(st.tuples(st.floats(0, 100), st.floats(0, 60)), max_size=8))
    def test_it_is_never_below_what_is_spent_already(self, jobs):
        costs = [cost(hours, days_ago=days) for hours, days in jobs]
        this_month = sum(hours for hours, days in jobs if days <= 10)
        assert forecast(costs, PRICES, now=NOW) >= this_month - 1e-9


class TestEstimate:
    def test_a_fixed_part_and_one_by_row_are_found(self):
        past = [cost(1 + rows / 1000, num_rows=rows) for rows in (1000, 2000, 4000)]
        found = estimate(past, PRICES, num_rows=10_000)
        assert (found.basis, found.num_past) == ("line", 3)
        assert found.seconds == pytest.approx(11 * 3600)
        assert found.money == pytest.approx(11.0)

    def test_of_one_size_more_rows_take_as_much_more_and_fewer_no_less(self):
        past = [cost(1, num_rows=1000), cost(3, num_rows=1000)]
        assert estimate(past, PRICES, num_rows=3000).money == pytest.approx(6.0)
        assert estimate(past, PRICES, num_rows=10).money == pytest.approx(2.0)

    def test_what_failed_or_said_nothing_of_its_size_is_no_measure(self):
        past = [cost(1, num_rows=1000, state="failed"), cost(1)]
        assert estimate(past, PRICES, num_rows=10) is None

    @settings(deadline=None)
    @given(
        past=st.lists(st.tuples(st.integers(1, 10_000), st.floats(0, 10)), min_size=1, max_size=6),
        more=st.integers(0, 10_000),
    )
    def test_more_rows_never_cost_less_and_nothing_is_below_zero(self, past, more):
        costs = [cost(hours, num_rows=rows) for rows, hours in past]
        less, greater = (estimate(costs, PRICES, num_rows=n) for n in (5, 5 + more))
        assert 0 <= less.money <= greater.money + 1e-9
