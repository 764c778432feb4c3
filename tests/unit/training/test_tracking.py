"""MLflow's runs: one a request, whatever becomes of the attempts."""

import time

import mlflow
import pytest

from penstock.errors import TrainingDataError
from penstock.settings import Settings
from penstock.training.tracking import FAILURE_TAG, REQUEST_TAG, Tracking


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return Settings(project_root=tmp_path_factory.mktemp("tracked"))


@pytest.fixture(scope="module")
def tracking(settings):
    return Tracking.open(settings)


@pytest.fixture(scope="module")
def client(settings):
    return mlflow.MlflowClient(tracking_uri=settings.tracking_uri)


def begin(tracking, request_id, **tags):
    return tracking.run(experiment="spills", name="run", request_id=request_id, tags=tags)


class TestRun:
    def test_a_finished_run_holds_what_was_logged(self, tracking, client, tmp_path):
        (tmp_path / "curve.png").write_bytes(b"png")
        with begin(tracking, "all", estimator="net") as run:
            run.log_params({"learning_rate": 0.1})
            run.log_history([{"train_loss": 3.0}, {"train_loss": 2.0}])
            run.log_metrics({"roc_auc": 0.9})
            run.log_artifacts(tmp_path)
        found = client.get_run(run.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.params == {"learning_rate": "0.1"}
        assert found.data.metrics["roc_auc"] == 0.9
        assert found.data.tags[REQUEST_TAG] == "all"
        assert found.data.tags["estimator"] == "net"
        history = client.get_metric_history(run.run_id, "train_loss")
        assert [(point.step, point.value) for point in history] == [(1, 3.0), (2, 2.0)]
        assert [file.path for file in client.list_artifacts(run.run_id)] == ["curve.png"]

    def test_a_failed_run_is_marked_so_with_its_reason(self, tracking, client):
        with pytest.raises(TrainingDataError), begin(tracking, "fails") as run:
            raise TrainingDataError("every label is 0")
        found = client.get_run(run.run_id)
        assert found.info.status == "FAILED"
        assert "every label is 0" in found.data.tags[FAILURE_TAG]

    def test_a_run_that_was_told_to_stop_is_marked_killed(self, tracking, client):
        with pytest.raises(SystemExit), begin(tracking, "stops") as run:
            raise SystemExit(143)
        assert client.get_run(run.run_id).info.status == "KILLED"

    def test_a_second_attempt_goes_on_with_the_first_ones_run(self, tracking, client):
        def lost():
            with begin(tracking, "again") as run:
                run.log_params({"seed": 0})
                run.log_history([{"train_loss": 3.0}])
                attempts.append(run)
                raise OSError("gone")

        attempts = []
        with pytest.raises(OSError, match="gone"):
            lost()
        (first,) = attempts
        with begin(tracking, "again") as second:
            assert second.is_resumed
            second.log_params({"seed": 0})
            second.log_history([{"train_loss": 3.0}, {"train_loss": 2.0}])
            second.log_metrics({"roc_auc": 0.9})
            second.log_metrics({"roc_auc": 0.9})
        assert second.run_id == first.run_id
        assert not first.is_resumed
        found = client.get_run(second.run_id)
        assert (found.info.status, found.data.tags[FAILURE_TAG]) == ("FINISHED", "")
        history = client.get_metric_history(second.run_id, "train_loss")
        assert [point.step for point in history] == [1, 2]
        assert len(client.get_metric_history(second.run_id, "roc_auc")) == 1

    def test_system_metrics_are_recorded_meanwhile(self, tracking, client, monkeypatch):
        monkeypatch.setattr("penstock.training.tracking._SYSTEM_METRICS_INTERVAL_S", 0.2)
        with begin(tracking, "measured") as run:
            deadline_s = time.monotonic() + 60
            while time.monotonic() < deadline_s:
                metrics = client.get_run(run.run_id).data.metrics
                if any(name.startswith("system/") for name in metrics):
                    break
                time.sleep(0.05)
        metrics = client.get_run(run.run_id).data.metrics
        assert "system/cpu_utilization_percentage" in metrics
        assert "system/system_memory_usage_megabytes" in metrics

    def test_a_run_whose_end_was_not_told_is_finished_once(self, tracking, client):
        with begin(tracking, "untold") as run:
            pass
        ended = client.get_run(run.run_id).info.end_time
        tracking.finish(run.run_id)
        assert client.get_run(run.run_id).info.end_time == ended
        client.update_run(run.run_id, status="RUNNING")
        tracking.finish(run.run_id)
        assert client.get_run(run.run_id).info.status == "FINISHED"


class TestFinishedRuns:
    def test_only_finished_ones_count_and_the_newest_comes_first(self, tracking):
        for request_id in ("one", "two"):
            with tracking.run(experiment="fresh", name="r", request_id=request_id, tags={}) as run:
                last = run.run_id
        with pytest.raises(OSError, match="gone"):  # noqa: SIM117  # the run ends inside
            with tracking.run(experiment="fresh", name="r", request_id="three", tags={}):
                raise OSError("gone")
        found = tracking.finished_runs("fresh")
        assert [run.tags[REQUEST_TAG] for run in found] == ["two", "one"]
        assert found[0].run_id == last

    def test_an_experiment_that_nobody_began_has_none(self, tracking):
        assert tracking.finished_runs("never") == []


PART = {
    "name": "trial 0",
    "params": {"max_depth": 3},
    "history": [{"roc_auc": 0.8}, {"roc_auc": 0.9}],
    "metrics": {"fit_s": 1.5},
    "tags": {"estimator": "boosted"},
    "status": "FINISHED",
}


class TestChildren:
    def test_a_part_is_a_run_beneath_it_with_its_metrics_by_step(self, tracking, client):
        with begin(tracking, "has parts") as run:
            tracking.record_child(run, {}, request_id="has parts/0", **PART)
        ((run_id, is_over),) = tracking.children(run).values()
        assert is_over
        found = client.get_run(run_id)
        assert found.data.tags["mlflow.parentRunId"] == run.run_id
        assert found.info.status == "FINISHED"
        assert found.data.params == {"max_depth": "3"}
        assert [point.value for point in client.get_metric_history(run_id, "roc_auc")] == [0.8, 0.9]

    def test_a_part_that_was_half_recorded_is_finished_and_a_whole_one_stays(self, tracking):
        with begin(tracking, "killed within") as run:
            tracking.record_child(run, {}, request_id="killed within/0", **PART)
            whole = tracking.children(run)
            ((run_id, _),) = whole.values()
            half = {"killed within/0": (run_id, False)}
            for known in (whole, half):
                tracking.record_child(run, known, request_id="killed within/0", **PART)
            assert tracking.children(run) == whole
