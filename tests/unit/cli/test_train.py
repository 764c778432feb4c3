import importlib.util
import sys
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner, Result

from penstock.cli.main import app
from penstock.errors import TrainingDataError, UserError
from penstock.settings import Settings
from real_data import REPO_ROOT


class Model(SimpleNamespace):
    name = "spills"
    estimators = ("forest", "net", "linear", "trees")

    def rank(self, metrics: dict[str, float]) -> float:
        return metrics["roc_auc"]


class Run(SimpleNamespace):
    def model_dump(self, *, mode: str) -> dict[str, Any]:
        return dict(self.__dict__)


@pytest.fixture
def train_all(monkeypatch: pytest.MonkeyPatch) -> Callable[[], dict[str, Any]]:
    """Run jobs/train.py --all: `net` can't be trained, `trees` can't be registered."""
    handed: dict[str, Any] = {}

    @contextmanager
    def job(*_: Any, **__: Any):
        yield SimpleNamespace(
            settings=None, request_id="r", progress=lambda *_, **__: None, finish=handed.update
        )

    def train(_settings, _model, *, estimator: str, **_: Any) -> Run:
        if estimator == "net":
            raise TrainingDataError("the loss was not a finite number")
        scores = {"forest": 0.9, "linear": 0.8, "trees": 0.7}
        return Run(estimator=estimator, metrics={"roc_auc": scores[estimator]})

    def register(_settings, run: Run) -> Run:
        if run.estimator == "trees":
            raise OSError("disk full")
        return Run(of=run.estimator)

    monkeypatch.setattr("penstock.cluster.job.job", job)
    monkeypatch.setattr("penstock.training.declarations.load_model", lambda *_: Model())
    monkeypatch.setattr("penstock.training.code_state.receive", lambda *_: None)
    # In the place of whole modules: loading the real ones takes seconds.
    for name, function in (("training.trainer", train), ("registry.registration", register)):
        module = SimpleNamespace(**{function.__name__: function})
        monkeypatch.setitem(sys.modules, f"penstock.{name}", module)
    monkeypatch.setattr("sys.argv", ["train.py", "dam", "--all"])
    spec = importlib.util.spec_from_file_location("train_job", REPO_ROOT / "jobs" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    def run() -> dict[str, Any]:
        with pytest.raises(TrainingDataError, match="not a finite number"):
            module.main()
        return handed

    return run


def test_what_could_be_trained_is_registered_though_another_estimator_failed(train_all, capsys):
    handed = train_all()
    # The best one comes last: the last one registered is the challenger.
    assert [each["version"]["of"] for each in handed["trained"]] == ["linear", "forest"]
    assert "trees was not registered: disk full" in capsys.readouterr().out


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
