import json
from datetime import UTC, datetime

import pytest
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.errors import GateRefusedError, NotFoundError, UserError
from penstock.monitoring.skew_report import AuditReport
from real_data import REPO_ROOT

NOW = datetime(2024, 5, 1, tzinfo=UTC)


def report_with(**num_by_reason: int) -> AuditReport:
    examples = [
        {
            "prediction_id": f"{reason}-0",
            "served_at": NOW,
            "as_of": NOW,
            "served": None,
            "recomputed": 1.5,
            "reason": reason,
            "why": "because",
        }
        for reason in num_by_reason
    ]
    return AuditReport.model_validate(
        {
            "use_case": "card_fraud",
            "since": None,
            "until": None,
            "num_predictions": 1_000,
            "num_waiting": 12,
            "num_given": 3,
            "num_cells": 2_000,
            "num_by_reason": num_by_reason,
            "features": [
                {
                    "service": "s",
                    "feature": name,
                    "num_cells": 1_000,
                    "num_by_reason": num_by_reason if name == "count" else {},
                    "examples": examples if name == "count" else [],
                }
                for name in ("count", "amount")
            ],
            "table_versions": {"card_fraud.windows": 3},
            "collected": {
                "table": "card_fraud.predictions",
                "num_predictions": 7,
                "num_segments": 1,
                "num_torn_segments": 1,
                "num_silent_replicas": 0,
            },
        }
    )


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))

    def invoke(*arguments: str, report: AuditReport | None = None):
        def run_job(_settings, script, given):
            assert report is not None, "a job was started"
            assert (script, given[0]) == ("audit", "card_fraud")
            return report.model_dump(mode="json")

        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        return CliRunner().invoke(app, ["features", "audit", *arguments])

    return invoke


class TestAudit:
    def test_it_shows_each_feature_and_an_example_of_each_reason(self, run):
        done = run("card_fraud", report=report_with(late=20, ahead=5))
        assert done.exit_code == 0
        assert "2.50%" in done.stdout
        assert "late: because" in done.stdout
        assert "1,000 predictions, 2,000 values: 25 differ, 0 unexplained" in done.stdout
        assert "ended in the middle of a write" in done.stdout
        assert "12 newer predictions were not looked at" in done.stdout

    def test_an_unexplained_value_ends_with_3_after_the_report(self, run):
        done = run("card_fraud", report=report_with(unexplained=1))
        assert isinstance(done.exception, GateRefusedError)
        assert done.exception.exit_code == 3
        assert "unexplained: because" in done.stdout

    def test_its_json_is_the_report(self, run):
        report = report_with(late=2)
        assert AuditReport.model_validate(
            json.loads(run("card_fraud", "--json", report=report).stdout)
        ) == report  # fmt: skip

    def test_the_file_has_the_report_and_a_picture_stands_beside_it(self, run, tmp_path):
        report = report_with(late=200, resolution=40, unexplained=3)
        run("card_fraud", "--out", str(tmp_path / "found.json"), report=report)
        assert AuditReport.model_validate_json((tmp_path / "found.json").read_text()) == report
        assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")

    @pytest.mark.parametrize(
        ("arguments", "error", "message"),
        [
            (["card_frauds"], NotFoundError, "did you mean 'card_fraud'"),
            (["card_fraud", "--out", "found.txt"], UserError, "json"),
            (
                ["card_fraud", "--since", "2024-01-02", "--until", "2024-01-02"],
                UserError,
                "is not before",
            ),
        ],
    )
    def test_what_is_wrong_is_told_before_a_job_starts(self, run, arguments, error, message):
        with pytest.raises(error, match=message):
            raise run(*arguments).exception
