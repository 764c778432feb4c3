"""What `penstock tune` refuses before a job starts, and what it shows of one that has ended."""

from typing import Any

import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.errors import UserError
from penstock.training.declarations import Ensemble, LogisticRegression, Member
from penstock.training.search.summary import LeaderboardEntry, TrialSummary, Tuning
from real_data import REPO_ROOT


def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path, *arguments: str) -> Result:
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "200")
    return CliRunner().invoke(app, ["tune", *arguments])


class TestRefusals:
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("card_frod",), "did you mean 'card_fraud'"),
            (("card_fraud", "-e", "xgbost"), "did you mean 'xgboost'"),
            (("card_fraud", "-e", "decision_tree"), "declares nothing to search"),
            (("card_fraud", "--auto", "-e", "xgboost"), "both given"),
            (("card_fraud", "--trials", "0"), "--trials is 0"),
            (("card_fraud", "--folds", "0"), "--folds is 0"),
            (("card_fraud", "--parallel", "-1"), "--parallel is -1"),
            (("card_fraud", "--time", "soon"), "no duration"),
            (("card_fraud", "--cost", "0"), "--cost is 0"),
            (("card_fraud", "--stopping", "early"), "asha, median, none"),
        ],
    )
    def test_what_cannot_be_searched_is_refused_before_a_job_starts(
        self, monkeypatch, tmp_path, arguments, words
    ):
        done = invoke(monkeypatch, tmp_path, *arguments)
        assert isinstance(done.exception, UserError)
        assert done.exception.exit_code == 2
        assert words in str(done.exception)

    def test_money_limits_nothing_where_a_cpu_costs_nothing(self, monkeypatch, tmp_path):
        monkeypatch.setenv("PENSTOCK_COST__PER_CPU_HOUR", "0")
        done = invoke(monkeypatch, tmp_path, "card_fraud", "--cost", "5")
        assert "limits nothing" in str(done.exception)


def trial(number: int, state: Any, value: float | None) -> TrialSummary:
    return TrialSummary(
        number=number,
        estimator="linear",
        params={"inverse_regularization": 0.5},
        state=state,
        num_folds=2,
        value=value,
        deviation=0.01,
        fit_s=1.0,
        reason=None,
    )


TUNING = Tuning(
    run_id="r",
    request_id="q",
    model="card_fraud",
    use_case="card_fraud",
    metric="average_precision",
    higher_is_better=True,
    training_set_id="t",
    table_versions={},
    kind_of_folds="rolling",
    folds=({}, {}),
    seed=0,
    stopping="asha",
    trials=(trial(0, "complete", 0.6), trial(1, "stopped", 0.5), trial(2, "failed", None)),
    best=0,
    reason="all 3 trials are done",
    elapsed_s=10.0,
    cpu_s=20.0,
    money=0.5,
    currency="EUR",
    pictures=("/there/tuning.html",),
    ensemble=Ensemble(members=(Member(estimator=LogisticRegression(), weight=1.0),)),
    leaderboard=(
        LeaderboardEntry(
            name="ensemble",
            metrics={"average_precision": 0.61},
            low=0.58,
            high=0.64,
            fit_s=3.0,
            latency_us=42.0,
            told="1.00 x trial 0 linear",
        ),
    ),
)


class TestShown:
    def test_the_search_the_leaderboard_and_the_version_are_told(self, monkeypatch, tmp_path):
        names = (
            "roc_auc",
            "average_precision",
            "card_precision_at_100",
            "log_loss",
            "brier_score",
            "calibration_error",
        )
        run = {"estimator": "auto", "model": "card_fraud", "metrics": dict.fromkeys(names, 0.25)}
        given: list[str] = []

        def run_job(_settings: Any, _script: str, arguments: list[str], **_: Any) -> dict[str, Any]:
            given.extend(arguments)
            tuning = TUNING.model_dump(mode="json")
            version, declaration = {"version": 7}, '"auto": Ensemble(members=[...])'
            return {"tuning": tuning, "run": run, "version": version, "declaration": declaration}

        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        done = invoke(monkeypatch, tmp_path, "card_fraud", "--auto", "--time", "1m30s")
        assert done.exit_code == 0
        assert given[:4] == ["card_fraud", "--auto", "--time-s", "90.0"]
        assert "--trials" not in given
        assert "0.5800 to 0.6400" in done.stdout
        assert (
            "3 trials, 1 of them on all 2 rolling folds, 1 given up early, 1 failed" in done.stdout
        )
        assert "version 7 (auto) is the challenger" in done.stdout
        assert 'among the estimators of model.py: "auto": Ensemble(members=[...]),' in done.stdout
