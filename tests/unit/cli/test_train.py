from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.errors import TrainingDataError, UserError
from penstock.settings import Settings
from real_data import REPO_ROOT


def invoke(monkeypatch: pytest.MonkeyPatch, tmp_path, *arguments: str) -> Result:
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))
    return CliRunner().invoke(app, list(arguments))


class TestTrain:
    def test_what_was_registered_before_a_failure_is_shown(self, monkeypatch, tmp_path):
        error = TrainingDataError("the loss was not a finite number")
        trained = [{"run": {"estimator": "mlp"}, "version": {"version": 3}}]
        error.result = {"model": "card_fraud", "trained": trained}

        def fail(*_: Any, **__: Any) -> None:
            raise error

        monkeypatch.setattr("penstock.cluster.jobs.run_job", fail)
        done = invoke(monkeypatch, tmp_path, "train", "card_fraud", "--all", "--json")
        assert done.exception is error
        assert orjson.loads(done.stdout) == error.result

    def test_a_model_of_numbers_is_shown_without_positives(self, monkeypatch, tmp_path):
        run = {
            "estimator": "ridge",
            "use_case": "bike_demand",
            "metrics": {"mean_absolute_error": 2.2, "root_mean_squared_error": 3.2, "r2": 0.87},
            "fit_s": 2.0,
            "num_training_rows": 1_777,
            "num_training_positives": None,
            "num_test_rows": 1_486,
            "num_test_positives": None,
        }
        result = {"model": "bike_demand", "trained": [{"run": run, "version": {"version": 3}}]}
        monkeypatch.setattr("penstock.cluster.jobs.run_job", lambda *_, **__: result)
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand", "-e", "ridge")
        assert done.exit_code == 0
        assert "1,777 training rows; 1,486 test rows\n" in done.stdout

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (("card_fraud", "-e", "mlp", "-e", "random_forst"), "did you mean 'random_forest'"),
            (("card_frod",), "did you mean 'card_fraud'"),
            (("card_fraud", "-e", "mlp", "--all"), "both given"),
        ],
    )
    def test_what_does_not_exist_is_refused_before_a_job_starts(
        self, monkeypatch, tmp_path, arguments, words
    ):
        monkeypatch.setattr("penstock.cluster.jobs.run_job", None)
        done = invoke(monkeypatch, tmp_path, "train", *arguments)
        assert done.exception.exit_code == 2
        assert words in str(done.exception)

    def test_several_estimators_go_to_one_job_and_stand_in_one_table(self, monkeypatch, tmp_path):
        given: list[str] = []

        def run_job(_settings, kind, arguments, **_: Any) -> dict[str, Any]:
            given.extend(arguments)
            metrics = dict.fromkeys(("mean_absolute_error", "root_mean_squared_error", "r2"), 0.5)
            counts = {
                f"num_{side}_{what}": None if what == "positives" else 7
                for side in ("training", "test")
                for what in ("rows", "positives")
            }
            shared = {"use_case": "bike_demand", "metrics": metrics, "fit_s": 2.0, **counts}
            return {
                "model": "bike_demand",
                "trained": [
                    {
                        "run": {"estimator": name, **shared},
                        "version": {"version": number, "facts": {"quantization": decided}},
                    }
                    for number, name, decided in (
                        (3, "ridge", None),
                        (4, "mlp", "not served in int8: too slow"),
                    )
                ],
            }

        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand", "-e", "mlp", "-e", "ridge")
        assert given[:5] == ["bike_demand", "--estimator", "mlp", "--estimator", "ridge"]
        assert "ridge" in done.stdout
        assert "version 4 is not served in int8: too slow" in done.stdout
        assert "version 4 is the challenger" in done.stdout


def measured_run(estimator: str = "ridge", remark: str | None = None) -> dict[str, Any]:
    counts = {
        "num_training_rows": 7_000,
        "num_training_positives": None,
        "num_test_rows": 600,
        "num_test_positives": None,
    }
    folds = [
        {
            "number": number,
            "rows": f"week {number}, tested week {number + 2}",
            "counts": counts,
            "metrics": {"r2": 0.8 + number / 100},
            "fit_s": 1.5,
        }
        for number in (1, 2)
    ]
    summary = {"mean": 0.815, "deviation": 0.007, "low": 0.79, "high": 0.84}
    return {
        "estimator": estimator,
        "folds": folds,
        "metrics": {"r2": summary},
        "level": 0.95,
        "remark": remark,
    }


class TestFolds:
    def jobs(self, monkeypatch, **results: Any) -> list[tuple[str, list[str]]]:
        asked = []

        def run_job(_settings, script, arguments, **_: Any) -> dict[str, Any]:
            asked.append((script, [each for each in arguments if each.startswith("--")]))
            return results[script]

        monkeypatch.setattr("penstock.cluster.jobs.run_job", run_job)
        return asked

    def test_each_metric_stands_with_its_deviation_interval_and_folds(self, monkeypatch, tmp_path):
        result = {"measured": [measured_run(remark="time is not respected")]}
        asked = self.jobs(monkeypatch, measure=result)
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand", "--folds", "-e", "ridge")
        assert done.exit_code == 0, done.exception
        assert [script for script, _ in asked] == ["measure"]
        words = done.stdout.replace("│", " ").split()
        row = words[words.index("r2") :][:8]
        assert row == ["r2", "0.815", "0.007", "0.790", "to", "0.840", "0.810", "0.820"]
        assert "fold 2: trained on week 2, tested week 4 (7,000 training rows; 600 test" in (
            " ".join(done.stdout.split())
        )
        assert "Note: time is not respected" in done.stdout

    @pytest.mark.parametrize("option", ["--register", "--promote"])
    def test_a_version_is_registered_only_where_it_is_asked_for(
        self, monkeypatch, tmp_path, option
    ):
        result = {"measured": [measured_run()]}
        trained = {"model": "bike_demand", "trained": []}
        asked = self.jobs(monkeypatch, measure=result, train=trained)
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand", "--folds", option, "--json")
        assert [script for script, _ in asked] == ["measure", "train"]
        assert ("--promote" in asked[1][1]) is (option == "--promote")
        assert orjson.loads(done.stdout) == result | trained

    def test_to_register_is_what_training_does_anyway(self, monkeypatch, tmp_path):
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand", "--register")
        assert isinstance(done.exception, UserError)

    def test_a_training_shows_its_intervals(self, monkeypatch, tmp_path):
        run = {
            "estimator": "ridge",
            "use_case": "bike_demand",
            "metrics": {"mean_absolute_error": 2.2, "root_mean_squared_error": 3.2, "r2": 0.87},
            "intervals": {"r2": [0.85, 0.885]},
            "fit_s": 2.0,
            "num_training_rows": 1_777,
            "num_training_positives": None,
            "num_test_rows": 1_486,
            "num_test_positives": None,
        }
        result = {"model": "bike_demand", "trained": [{"run": run, "version": {"version": 3}}]}
        self.jobs(monkeypatch, train=result)
        done = invoke(monkeypatch, tmp_path, "train", "bike_demand")
        assert "0.870 (0.850 to 0.885)" in done.stdout


class TestResults:
    def test_before_any_training_the_next_step_is_told(self, monkeypatch, tmp_path):
        done = invoke(monkeypatch, tmp_path, "results", "card_fraud")
        assert done.exception.exit_code == 2
        assert "penstock train card_fraud --all" in str(done.exception)

    def test_the_newest_runs_are_written_as_a_page(self, monkeypatch, tmp_path):
        from penstock.training.tracking import ESTIMATOR_TAG, Tracking

        settings = Settings(project_root=REPO_ROOT, storage={"root": str(tmp_path)})
        names = ("training_rows", "training_positives", "test_rows", "test_positives")
        with Tracking.open(settings).run(
            experiment="card_fraud", name="r", request_id="r", tags={ESTIMATOR_TAG: "xgboost"}
        ) as run:
            run.log_params({f"num_{name}": 10 for name in names})
            run.log_metrics({"roc_auc": 0.87654, "fit_s": 1.25})
        page = tmp_path / "new" / "results.md"
        done = invoke(monkeypatch, tmp_path, "results", "card_fraud", "--out", str(page))
        assert done.exit_code == 0
        assert done.stdout.startswith("written:")
        assert "| xgboost | 0.877" in page.read_text()
        assert (
            invoke(monkeypatch, tmp_path, "results", "card_fraud").stdout == page.read_text() + "\n"
        )


@pytest.mark.parametrize("request_id", ["o'clock", '"', "", "a b", "x" * 101])
@pytest.mark.parametrize(
    "command", [("train", "card_fraud"), ("score", "card_fraud", "--table", "t", "--out", "o")]
)
def test_a_request_id_that_no_job_could_take_is_refused_before_one_starts(
    monkeypatch, tmp_path, command, request_id
):
    done = invoke(monkeypatch, tmp_path, *command, "--request-id", request_id)
    assert isinstance(done.exception, UserError)
    assert "cannot be a request id" in str(done.exception)
