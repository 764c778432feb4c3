"""The table of our numbers beside the published ones."""

from datetime import UTC, datetime, timedelta

import pytest

from penstock.settings import Settings
from penstock.training.declarations import load_model
from penstock.training.results import collect, falls_short, put_section, to_markdown
from penstock.training.tracking import ESTIMATOR_TAG, FinishedRun
from real_data import REPO_ROOT

COUNTS = {
    "num_training_rows": "67240",
    "num_training_positives": "598",
    "num_test_rows": "58264",
    "num_test_positives": "385",
}


def finished(estimator, minutes, **metrics):
    return FinishedRun(
        run_id=f"{estimator}-{minutes}",
        started=datetime(2024, 1, 1, tzinfo=UTC) + timedelta(minutes=minutes),
        metrics={"fit_s": 1.5, **metrics},
        params=COUNTS,
        tags={ESTIMATOR_TAG: estimator},
    )


def good(**changed):
    numbers = {"roc_auc": 0.871, "average_precision": 0.606, "card_precision_at_100": 0.291}
    return numbers | changed


class TestCollect:
    def test_the_newest_run_of_each_estimator_counts_in_the_order_of_declaration(
        self, card_fraud_model
    ):
        runs = [
            finished("xgboost", 1, **good()),
            finished("logistic_regression", 3, **good(roc_auc=0.88)),
            finished("logistic_regression", 2, **good()),
            finished("forgotten", 4, **good()),
        ]
        found = collect(card_fraud_model, runs)
        assert [result.run_id for result in found] == ["logistic_regression-3", "xgboost-1"]
        assert found[0].published["roc_auc"] == 0.871


class TestFallsShort:
    @pytest.mark.parametrize(
        ("ours", "missed"),
        [(0.861, ()), (0.95, ()), (0.8605, ()), (0.8604, ("roc_auc",)), (0.86, ("roc_auc",))],
    )
    def test_a_number_may_be_a_hundredth_below_after_rounding(self, ours, missed):
        found = falls_short({"roc_auc": ours}, {"roc_auc": 0.871}, {}, tolerance=0.01)
        assert found == missed

    def test_a_metric_that_was_not_measured_falls_short(self):
        assert falls_short({}, {"roc_auc": 0.8}, {}, tolerance=0.01) == ("roc_auc",)

    def test_where_lower_is_better_a_higher_number_falls_short(self):
        found = falls_short(
            {"log_loss": 0.5}, {"log_loss": 0.1}, {"log_loss": False}, tolerance=0.01
        )
        assert found == ("log_loss",)


class TestSections:
    ONE, TWO = "# Results: one\n\nold\n", "# Results: two\n\n| a |\n"

    def test_a_models_section_takes_the_place_of_its_former_one(self):
        new = "# Results: one\n\nnew\n"
        assert put_section(f"{self.ONE}\n{self.TWO}", new) == f"{new}\n{self.TWO}"

    def test_a_new_one_comes_after_all_others(self):
        assert put_section("", self.ONE) == self.ONE
        assert put_section(self.ONE, self.TWO) == f"{self.ONE}\n{self.TWO}"

    def test_a_model_whose_name_begins_alike_keeps_its_own(self):
        other = "# Results: one_more\n\nold\n"
        page = put_section(other, self.ONE)
        assert page == f"{other}\n{self.ONE}"
        assert put_section(page, self.ONE) == page


class TestMarkdown:
    def test_a_rolling_split_of_numbers_is_told_without_positives(self):
        model = load_model(Settings(project_root=REPO_ROOT), "bike_demand")
        run = finished("ridge", 1, mean_absolute_error=2.2, baseline_mean_absolute_error=2.25)
        counts = {name: number for name, number in COUNTS.items() if "positives" not in name}
        run = run.model_copy(update={"params": counts})
        page = to_markdown(model, collect(model, [run]))
        assert "| ridge | 2.200 (4.020) |" in page
        assert "| `bikes_last_day` as it is | 2.250 | - | - |  |" in page
        assert "(58,264 rows), labels known 30 minutes late; fitted anew for each month" in page
        assert "positive" not in page

    def test_ours_stands_beside_the_published_number(self, card_fraud_model):
        found = collect(card_fraud_model, [finished("logistic_regression", 1, **good())])
        page = to_markdown(card_fraud_model, found)
        assert "| logistic_regression | 0.871 (0.871) | 0.606 (0.606) |" in page
        assert "67,240 rows, 598 positives" in page
        assert "Every estimator is within 0.01" in page

    def test_what_falls_short_is_said(self, card_fraud_model):
        runs = [finished("logistic_regression", 1, **good(roc_auc=0.5))]
        page = to_markdown(card_fraud_model, collect(card_fraud_model, runs))
        assert "logistic_regression in roc_auc" in page
        assert "Every estimator is within" not in page
