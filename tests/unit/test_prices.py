import pytest
from pydantic import ValidationError

from penstock.prices import CostSettings

PRICES = CostSettings(currency="EUR", per_cpu_hour=0.04, per_gpu_hour=3.0, per_gb_hour=0.005)


class TestCostSettings:
    def test_an_hour_of_each_costs_its_price(self):
        assert PRICES.money(cpu_s=3600) == pytest.approx(0.04)
        assert PRICES.money(cpu_s=0, gpu_s=3600) == pytest.approx(3.0)
        assert PRICES.money(cpu_s=0, memory_gb_s=7200) == pytest.approx(0.01)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"per_cpu_hour": -1},
            {"per_gb_hour": float("nan")},
            {"currency": "euro"},
            {"budgets_per_month": {"churn": -5}},
            {"budget": {}},
        ],
    )
    def test_no_price_or_budget_is_below_zero_or_of_another_name(self, wrong):
        with pytest.raises(ValidationError):
            CostSettings(**wrong)


def test_unset_prices_add_up_to_the_listed_machines():
    unset = CostSettings()
    general = unset.money(cpu_s=2 * 3600, memory_gb_s=8 * 3600)
    with_gpu = unset.money(cpu_s=4 * 3600, gpu_s=3600, memory_gb_s=16 * 3600)
    assert general == pytest.approx(0.0816)
    assert with_gpu == pytest.approx(1.006, abs=0.001)
