import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.errors import NotFoundError
from penstock.monitoring.truth import FeedbackReport
from real_data import REPO_ROOT

REPORT = FeedbackReport(
    use_case="card_fraud",
    label_delay_s=7 * 86_400,
    num_feedback=900,
    num_repeated=5,
    num_unmatched=12,
    num_predictions=1_000,
    num_with_truth=800,
    num_due=900,
    num_due_with_truth=790,
    num_contradicted=3,
    num_late=4,
    delay_s={"0.5": 86_400.0, "0.9": 3_600.0},
)
INGESTED = {
    "source": "/data/truths.csv",
    "digest": "d",
    "status": "ingested",
    "num_read": 1_200,
    "num_kept": 1_198,
    "num_quarantined": 2,
    "broken_rules": {"truth: isin([0, 1])": 2},
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run the command with a job that answers at once; gives what it said and the job's arguments."""
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))
    jobs: list[list[str]] = []

    def run_job(_settings, script, given):
        assert script == "feedback"
        jobs.append(given)
        return INGESTED if given[0] == "ingest" else REPORT.model_dump(mode="json")

    def invoke(*arguments: str) -> tuple[str, list[Any]]:
        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        done = CliRunner().invoke(app, ["feedback", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout, jobs

    return invoke


class TestShow:
    def test_it_says_how_much_is_known_and_what_is_odd(self, run):
        said, jobs = run("show", "card_fraud")
        assert jobs == [["show", "card_fraud"]]
        for text in (
            "800 (80.0%)",
            "790 (87.8%)",
            "q 0.5 24h, q 0.9 1h; declared delay: 7d",
            "900 feedback: 5 repeated, 12 of no known prediction",
            "4 truths came later than declared",
            "3 predictions were told different truths",
        ):
            assert text in said

    def test_its_json_is_the_report(self, run):
        said, _ = run("show", "card_fraud", "--json")
        assert FeedbackReport.model_validate(json.loads(said)) == REPORT

    def test_a_wrong_name_is_told_before_a_job_starts(self, run):
        with pytest.raises(NotFoundError, match="did you mean 'card_fraud'"):
            run("show", "card_frauds")


class TestIngest:
    def test_the_counts_add_up_and_broken_rules_are_told(self, run):
        said, _ = run("ingest", "card_fraud", "truths.csv")
        assert "truths.csv ingested: 1,200 read = 1,198 kept + 2 quarantined" in said
        assert "2 rows broke truth: isin([0, 1])" in said

    def test_the_job_is_told_which_columns_say_what(self, run):
        _, [arguments] = run(
            "ingest", "card_fraud", "truths.csv", "--entity", "A", "--entity", "-B",
            "--event-time", "AT", "--truth", "Y", "--known-at", "K",
        )  # fmt: skip
        assert arguments[:3] == ["ingest", "card_fraud", str(Path("truths.csv").absolute())]
        assert set(arguments[3:]) == {
            "--truth=Y", "--prediction-id=prediction_id", "--event-time=AT", "--known-at=K",
            "--entity=A", "--entity=-B",
        }  # fmt: skip
