from datetime import UTC, datetime

import orjson
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.cluster import ledger
from penstock.cluster.ledger import JobCost
from penstock.cluster.usage import Usage
from penstock.settings import Settings
from real_data import REPO_ROOT

NOW = datetime.now(UTC)


@pytest.fixture
def invoke(monkeypatch, tmp_path):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))
    monkeypatch.setenv("PENSTOCK_COST__PER_CPU_HOUR", "2")
    monkeypatch.setenv("PENSTOCK_COST__BUDGETS_PER_MONTH", '{"card_fraud": 3}')
    settings = Settings(project_root=REPO_ROOT, storage={"root": str(tmp_path)})
    for number, use_case in enumerate(("card_fraud", "bike_demand")):
        made = JobCost(
            job_id=f"train-{number}",
            kind="train",
            use_case=use_case,
            model_versions=(f"{use_case} 1",),
            state="succeeded",
            started=NOW,
            seen=NOW,
            usage=Usage(cpu_s=3600 * (number + 1)),
        )
        ledger.write(settings, made)

    def run(*arguments: str) -> Result:
        return CliRunner().invoke(app, list(arguments))

    return run


def test_the_month_is_summed_by_use_case_kind_and_version(invoke):
    found = orjson.loads(invoke("cost", "--json").stdout)
    assert found["money"] == pytest.approx(6.0)
    assert {each["name"]: each["money"] for each in found["use case"]} == {
        "card_fraud": 2.0,
        "bike_demand": 4.0,
    }
    assert [each["name"] for each in found["model version"]] == ["bike_demand 1", "card_fraud 1"]
    assert found["forecast"] >= 6.0


def test_one_use_case_is_shown_with_what_is_left_of_its_budget(invoke):
    text = invoke("cost", "card_fraud").stdout
    assert "card_fraud: 1.00 of 3.00 USD left" in text
    assert "bike_demand" not in text


def test_another_month_has_no_forecast_and_what_is_no_month_is_refused(invoke):
    assert "No job began in 2001-01." in invoke("cost", "--month", "2001-01").stdout
    assert invoke("cost", "--month", "2001-13").exception.exit_code == 2
    assert invoke("cost", "card_frod").exception.exit_code == 2


def test_a_dry_run_says_what_a_training_would_cost_and_starts_nothing(invoke, monkeypatch):
    monkeypatch.setattr("penstock.cluster.jobs.run_job", None)
    monkeypatch.setattr("penstock.training.planned_cost.label_rows", lambda *_: 1000)
    text = invoke("train", "card_fraud", "-e", "mlp", "--folds", "--register", "--dry-run").stdout
    assert "measure mlp: 1,000 rows; no job like it has ended well yet" in text
    assert "train mlp: 1,000 rows" in text
    assert "1.00 USD of the month's budget left" in text
    assert text.endswith("Nothing was started.\n")
