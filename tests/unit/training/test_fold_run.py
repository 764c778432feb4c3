"""A measurement on folds: one tracked run, each fold kept, nothing registered."""

import runpy
from contextlib import contextmanager
from datetime import timedelta
from types import SimpleNamespace

import mlflow
import numpy as np
import pytest

from payments import FIRST_DAY
from penstock.errors import GateRefusedError, TrainingDataError
from penstock.progress import silent
from penstock.training.code_state import CodeState
from penstock.training.declarations import (
    LeakAlarm,
    PrequentialFolds,
    RandomFolds,
    TimeSplit,
)
from penstock.training.fold_records import FoldsRun
from penstock.training.fold_run import measure_each, measure_on_folds
from penstock.training.results import collect
from penstock.training.runs import run_folder
from penstock.training.tracking import REQUEST_TAG, Tracking
from projects import REPO_ROOT
from small_model import prepare

CODE = CodeState(commit="c0ffee")
DAY = timedelta(days=1)
FIRST = TimeSplit(
    train_start=FIRST_DAY,
    train_end=FIRST_DAY + 20 * DAY,
    test_start=FIRST_DAY + 27 * DAY,
    test_end=FIRST_DAY + 37 * DAY,
    label_delay=7 * DAY,
)
FOLDS = PrequentialFolds(first=FIRST, num_folds=3)


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("folds"))


@pytest.fixture(scope="module")
def model(card_fraud_model):
    return card_fraud_model.model_copy(update={"validation": FOLDS, "leak_alarm": None})


def measured(settings, model, request_id, **more):
    arguments = {"estimator": "logistic_regression", "code": CODE} | more
    return measure_on_folds(settings, model, request_id=request_id, **arguments)


@pytest.fixture(scope="module")
def found(settings, model):
    return measured(settings, model, "first")


@pytest.fixture(scope="module")
def client(settings):
    return mlflow.MlflowClient(tracking_uri=settings.tracking_uri)


class TestRun:
    def test_it_tells_each_metric_over_the_folds_and_what_the_folds_are(self, found):
        values = [fold.metrics["roc_auc"] for fold in found.folds]
        summary = found.metrics["roc_auc"]
        assert len(values) == 3
        assert summary.mean == pytest.approx(np.mean(values))
        assert summary.deviation == pytest.approx(np.std(values, ddof=1))
        assert summary.low < summary.mean < summary.high
        assert (
            found.folds[0].rows == "2024-03-01 up to 2024-03-21, tested 2024-03-28 up to 2024-04-07"
        )
        assert found.folds[2].counts.num_test_rows > 300
        assert found.remark is None
        assert (found.level, found.git_commit) == (0.95, "c0ffee")

    def test_it_is_one_tracked_run_with_the_folds_as_steps(self, found, client):
        tracked = client.get_run(found.run_id)
        assert tracked.info.status == "FINISHED"
        steps = client.get_metric_history(found.run_id, "fold_average_precision")
        assert [(each.step, each.value) for each in steps] == [
            (fold.number, pytest.approx(fold.metrics["average_precision"])) for fold in found.folds
        ]
        metrics, summary = tracked.data.metrics, found.metrics["roc_auc"]
        ends = [metrics[f"roc_auc{end}"] for end in ("", "_deviation", "_low", "_high")]
        assert ends == pytest.approx([summary.mean, summary.deviation, summary.low, summary.high])
        assert tracked.data.params["folds"] == "prequential"
        assert tracked.data.tags["penstock.training_set"] == found.training_set_id

    def test_it_does_not_stand_for_a_training(self, found, settings, model):
        assert collect(model, Tracking.open(settings).finished_runs(model.name)) == []

    def test_the_same_request_again_gives_the_same_and_begins_no_other(
        self, found, settings, model, client
    ):
        assert measured(settings, model, "first") == found
        experiment = client.get_experiment_by_name(model.name)
        runs = client.search_runs([experiment.experiment_id], f"tags.`{REQUEST_TAG}` = 'first'")
        assert len(runs) == 1

    def test_folds_that_look_at_the_future_say_so(self, settings, model, client):
        folds = RandomFolds(start=FIRST_DAY, end=FIRST_DAY + 20 * DAY, num_folds=2)
        found = measured(settings, model.model_copy(update={"validation": folds}), "random")
        assert "time is not respected" in found.remark
        assert client.get_run(found.run_id).data.tags["penstock.folds"] == found.remark


class TestRestart:
    def stopped(self, settings, model, request_id):
        def stop(step, done, total=None, *, unit="rows"):
            if step.endswith(": folds") and done == 2:
                raise SystemExit(143)

        with pytest.raises(SystemExit):
            measured(settings, model, request_id, progress=stop)
        run_id = Tracking.open(settings).find_run(model.name, request_id)
        return run_folder(settings, run_id), run_id

    def test_a_fold_that_is_done_is_not_done_again(self, settings, model, found, client):
        folder, run_id = self.stopped(settings, model, "stopped")
        before = {file.name: file.stat().st_mtime_ns for file in folder.glob("fold-*")}
        assert set(before) == {"fold-1.npz", "fold-2.npz"}
        again = measured(settings, model, "stopped")
        assert {name: (folder / name).stat().st_mtime_ns for name in before} == before
        assert again.run_id == run_id
        assert again.metrics == found.metrics
        steps = client.get_metric_history(run_id, "fold_roc_auc")
        assert [each.step for each in steps] == [1, 2, 3]

    def test_a_fold_that_was_told_otherwise_is_measured_again(self, settings, model):
        folder, _ = self.stopped(settings, model, "changed")
        before = (folder / "fold-1.npz").stat().st_mtime_ns
        config = model.estimators["logistic_regression"]
        other = config.model_copy(update={"inverse_regularization": 1e-4})
        estimators = {**model.estimators, "logistic_regression": other}
        changed = model.model_copy(update={"estimators": estimators})
        again = measured(settings, changed, "changed")
        assert (folder / "fold-1.npz").stat().st_mtime_ns > before
        assert len(again.folds) == 3


class TestRefusals:
    def test_a_mean_too_good_to_be_true_ends_the_run_as_a_leak(self, settings, model, client):
        alarm = LeakAlarm(metric="roc_auc", max_plausible=0.01)
        with pytest.raises(GateRefusedError, match="too good to be true"):
            measured(settings, model.model_copy(update={"leak_alarm": alarm}), "leak")
        run_id = Tracking.open(settings).find_run(model.name, "leak")
        assert client.get_run(run_id).info.status == "FAILED"

    def test_a_later_fold_without_rows_is_refused_before_the_first_fit(
        self, settings, model, client
    ):
        late = PrequentialFolds(first=FIRST, num_folds=5)
        with pytest.raises(TrainingDataError, match="test split has no rows"):
            measured(settings, model.model_copy(update={"validation": late}), "late")
        run_id = Tracking.open(settings).find_run(model.name, "late")
        assert not list(run_folder(settings, run_id).glob("fold-*"))
        assert client.get_run(run_id).info.status == "FAILED"

    def test_one_that_fails_takes_nothing_from_the_others(self, settings, model, capsys):
        bad = model.estimators["decision_tree"].model_copy(update={"max_depth": -1})
        broken = model.model_copy(update={"estimators": {**model.estimators, "bad": bad}})
        names = ["bad", "decision_tree"]
        runs, failures = measure_each(settings, broken, names, request_id="both", code=CODE)
        assert [run.estimator for run in runs] == ["decision_tree"]
        assert len(failures) == 1
        assert "bad failed" in capsys.readouterr().out


def test_the_job_hands_over_what_was_measured(settings, model, monkeypatch):
    handed, described = {}, {}

    @contextmanager
    def job(*_args, **_more):
        yield SimpleNamespace(
            settings=settings,
            request_id="job",
            progress=silent,
            finish=handed.update,
            account=SimpleNamespace(describe=described.update),
        )

    monkeypatch.setattr("penstock.cluster.job.job", job)
    monkeypatch.setattr("penstock.training.declarations.load_model", lambda *_: model)
    monkeypatch.setattr("sys.argv", ["measure.py", "card_fraud", "--estimator", "decision_tree"])
    runpy.run_path(str(REPO_ROOT / "jobs" / "measure.py"), run_name="__main__")
    (run,) = handed["measured"]
    assert run["estimator"] == described["subject"] == "decision_tree"
    assert FoldsRun.model_validate(run).metrics["roc_auc"].mean > 0
