from datetime import UTC, datetime, timedelta

import pytest

from payments import USE_CASE, commit_payments, payments_before_the_test, settings_in
from penstock.cluster import ledger
from penstock.cluster.ledger import JobCost
from penstock.cluster.usage import Usage
from penstock.errors import NotFoundError
from penstock.training.planned_cost import label_rows, plan

NOW = datetime(2024, 3, 15, tzinfo=UTC)


@pytest.fixture
def settings(tmp_path):
    settings = settings_in(tmp_path)
    commit_payments(settings, payments_before_the_test())
    return settings


def test_a_job_is_estimated_from_past_ones_of_its_own_kind(settings, card_fraud_model):
    rows = label_rows(settings, card_fraud_model)
    assert 0 < rows < 4_000
    for number, (kind, subject) in enumerate([("train", "mlp xgboost"), ("train", "xgboost")]):
        made = JobCost(
            job_id=f"train-{number}",
            kind=kind,
            use_case=USE_CASE,
            subject=subject,
            num_rows=rows,
            state="succeeded",
            started=NOW,
            seen=NOW + timedelta(seconds=10 * (number + 1)),
            usage=Usage(cpu_s=3600),
        )
        ledger.write(settings, made)
    found = plan(settings, card_fraud_model, ["xgboost", "mlp"], kind="train")
    assert (found.num_rows, found.estimate.num_past, found.estimate.seconds) == (rows, 1, 10)
    assert found.estimate.money == pytest.approx(settings.cost.per_cpu_hour)
    assert found.budget_left is None


def test_without_a_past_there_is_no_estimate_and_none_is_made_up(settings, card_fraud_model):
    assert plan(settings, card_fraud_model, ["mlp"], kind="train").estimate is None


def test_what_cannot_be_trained_on_has_no_price(tmp_path, card_fraud_model):
    with pytest.raises(NotFoundError, match="no table named"):
        plan(settings_in(tmp_path), card_fraud_model, ["mlp"], kind="train")
