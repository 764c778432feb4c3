"""MLflow's tracking, behind one door: one run a training, the same one after a restart."""

import contextlib
import logging
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import mlflow
import mlflow.exceptions
from mlflow.entities import Metric, Param, RunTag
from mlflow.system_metrics.system_metrics_monitor import SystemMetricsMonitor
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from penstock.errors import PenstockError, UserError
from penstock.locks import exclusive
from penstock.logs import redact
from penstock.records import Record
from penstock.settings import Settings

REQUEST_TAG = "penstock.request_id"
ESTIMATOR_TAG = "penstock.estimator"
FAILURE_TAG = "penstock.failure"
TUNING_TAG = "penstock.tuning_run"
REPRODUCTION_TAG = "penstock.reproduction_of"
FOLDS_TAG = "penstock.folds"
"""On a run that measured folds and left no model: whether these respect time."""
FOLD_ROWS_TAG = "penstock.fold_rows"
"""On a run that makes another one again: the other's id."""
BASELINE = "baseline_"
"""Before the name of a metric: what the model's baseline reaches on the same rows."""
_MAX_METRICS_PER_BATCH = 1000
_MAX_PARAMS_PER_BATCH = 100
_MAX_TAG_CHARS = 5000
_MAX_CHILDREN = 10_000
_SYSTEM_METRICS_INTERVAL_S = 2
# MLflow makes its tables on first use, and two processes that both do so get in each other's way.
_FIRST_USE_WAIT_S = 120.0


class FinishedRun(Record):
    """What MLflow knows of a run that ended well."""

    run_id: str
    started: datetime
    metrics: dict[str, float]
    params: dict[str, str]
    tags: dict[str, str]


class TrackedRun:
    """One run in MLflow."""

    def __init__(self, client: mlflow.MlflowClient, run_id: str, *, is_resumed: bool) -> None:
        self._client = client
        self.run_id = run_id
        self.is_resumed = is_resumed
        """An earlier attempt at the same request began it."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record what the run was told; a param keeps its first value, as MLflow has it."""
        known = set(self._get().data.params)
        new = [Param(key, str(value)) for key, value in params.items() if key not in known]
        for start in range(0, len(new), _MAX_PARAMS_PER_BATCH):
            self._log(params=new[start : start + _MAX_PARAMS_PER_BATCH])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record facts that a later attempt may replace."""
        self._log(tags=[RunTag(key, value[:_MAX_TAG_CHARS]) for key, value in tags.items()])

    def tag(self, key: str) -> str | None:
        """Give what this or an earlier attempt recorded under the tag."""
        found = self._get().data.tags.get(key)
        return None if found is None else str(found)

    def log_metrics(self, metrics: Mapping[str, float]) -> None:
        """Record final metrics, once."""
        known = set(self._get().data.metrics)
        now = _now_ms()
        self._log(metrics=[Metric(k, v, now, 0) for k, v in metrics.items() if k not in known])

    def log_history(self, history: Sequence[Mapping[str, float]]) -> None:
        """Record metrics by epoch, steps from 1; steps that an earlier attempt wrote are kept."""
        now = _now_ms()
        written: dict[str, int] = {}
        with _door():
            for key in {key for epoch in history for key in epoch}:
                points = self._client.get_metric_history(self.run_id, key) or []
                written[key] = max((point.step for point in points), default=0)
        points = [
            Metric(key, value, now, step)
            for step, epoch in enumerate(history, start=1)
            for key, value in epoch.items()
            if step > written[key]
        ]
        for start in range(0, len(points), _MAX_METRICS_PER_BATCH):
            self._log(metrics=points[start : start + _MAX_METRICS_PER_BATCH])

    def log_artifacts(self, folder: Path) -> None:
        """Copy the folder's files into the run's artifacts."""
        with _door():
            self._client.log_artifacts(self.run_id, str(folder))

    def _get(self) -> Any:
        with _door():
            return self._client.get_run(self.run_id)

    def _log(self, **parts: Any) -> None:
        if any(parts.values()):
            with _door():
                self._client.log_batch(self.run_id, **parts)

    def _end(self, status: str) -> None:
        with _door():
            self._client.set_terminated(self.run_id, status)


class Tracking:
    """The tracking database or server that the settings name."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._uri = settings.tracking_uri
        for remarks in ("mlflow.system_metrics", "mlflow.store.db.utils"):
            logging.getLogger(remarks).setLevel(logging.WARNING)
        # MLflow 3.17's stores use what SQLAlchemy 2.1 deprecates, on the monitor's thread too.
        warnings.filterwarnings("ignore", message="The ``noload`` loader strategy")
        with (
            _door(),
            exclusive(
                settings.storage_path / "locks" / "tracking.lock",
                what="the tracking database's first use",
                wait_s=_FIRST_USE_WAIT_S,
            ),
        ):
            self._client = mlflow.MlflowClient(tracking_uri=self._uri, registry_uri=self._uri)
            self._client.search_experiments(max_results=1)

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Open it; an embedded database is made when it is not there."""
        return cls(settings)

    @contextlib.contextmanager
    def run(
        self, *, experiment: str, name: str, request_id: str, tags: Mapping[str, str]
    ) -> Iterator[TrackedRun]:
        """Hold the request's one run, and end it as FINISHED, FAILED or KILLED.

        An earlier attempt's run goes on; system metrics are recorded meanwhile.
        """
        run = self._open_run(experiment, name, request_id, tags)
        monitor: Any = SystemMetricsMonitor(  # type: ignore[no-untyped-call]  # MLflow left it so
            run.run_id,
            sampling_interval=_SYSTEM_METRICS_INTERVAL_S,
            samples_before_logging=1,
            resume_logging=run.is_resumed,
            tracking_uri=self._uri,
        )
        monitor.start()
        try:
            yield run
        except Exception as error:
            run.set_tags({FAILURE_TAG: redact(f"{type(error).__name__}: {error}")})
            monitor.finish()
            run._end("FAILED")
            raise
        except BaseException:
            monitor.finish()
            run._end("KILLED")
            raise
        monitor.finish()
        run._end("FINISHED")

    def finish(self, run_id: str) -> None:
        """Mark a run as FINISHED whose end was not told; a finished one keeps its time."""
        with _door():
            if self._client.get_run(run_id).info.status != "FINISHED":
                self._client.set_terminated(run_id, "FINISHED")

    def find_run(self, experiment: str, request_id: str) -> str | None:
        """Find the id of the request's run, whatever became of it."""
        with _door():
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return None
            runs = self._client.search_runs(
                [found.experiment_id], f"tags.`{REQUEST_TAG}` = '{_quotable(request_id)}'"
            )
        return str(runs[0].info.run_id) if runs else None

    def children(self, parent: TrackedRun) -> dict[str, tuple[str, bool]]:
        """Give the runs beneath a run: by request id its run id, and whether it is over."""
        with _door():
            experiment_id = self._client.get_run(parent.run_id).info.experiment_id
            found = self._client.search_runs(
                [experiment_id],
                f"tags.`{MLFLOW_PARENT_RUN_ID}` = '{parent.run_id}'",
                max_results=_MAX_CHILDREN,
            )
        return {
            run.data.tags[REQUEST_TAG]: (run.info.run_id, run.info.status != "RUNNING")
            for run in found
        }

    def record_child(
        self,
        parent: TrackedRun,
        known: Mapping[str, tuple[str, bool]],
        *,
        request_id: str,
        name: str,
        params: Mapping[str, Any],
        history: Sequence[Mapping[str, float]],
        metrics: Mapping[str, float],
        tags: Mapping[str, str],
        status: Literal["FINISHED", "FAILED", "KILLED"],
    ) -> None:
        """Record a part of a run that is over, as a run beneath it; what is recorded stays.

        Args:
            parent: the run that it is a part of.
            known: what `children` gave when this attempt began.
            request_id: names the part over all attempts.
            name: for people.
            params: what it was told.
            history: metrics by step.
            metrics: those that it ended with.
            tags: facts about it.
            status: how it ended.
        """
        run_id, is_over = known.get(request_id, (None, False))
        if is_over:
            return
        if run_id is None:
            all_tags = {**tags, MLFLOW_PARENT_RUN_ID: parent.run_id, REQUEST_TAG: request_id}
            with _door():
                experiment_id = self._client.get_run(parent.run_id).info.experiment_id
                created = self._client.create_run(experiment_id, tags=all_tags, run_name=name)
            run_id = str(created.info.run_id)
        run = TrackedRun(self._client, run_id, is_resumed=True)
        run.log_params(params)
        run.log_history(history)
        run.log_metrics(metrics)
        run._end(status)

    def finished_runs(self, experiment: str) -> list[FinishedRun]:
        """Give every finished run of the experiment, the newest first; reproductions are none."""
        with _door():
            found = self._client.get_experiment_by_name(experiment)
            if found is None:
                return []
            runs = self._client.search_runs(
                [found.experiment_id],
                "attributes.status = 'FINISHED'",
                order_by=["attributes.start_time DESC"],
            )
        return [
            FinishedRun(
                run_id=run.info.run_id,
                started=datetime.fromtimestamp(run.info.start_time / 1000, UTC),
                metrics=run.data.metrics,
                params=run.data.params,
                tags=run.data.tags,
            )
            for run in runs
            if REPRODUCTION_TAG not in run.data.tags
        ]

    def _open_run(
        self, experiment: str, name: str, request_id: str, tags: Mapping[str, str]
    ) -> TrackedRun:
        experiment_id = self._experiment(experiment)
        all_tags = {**tags, REQUEST_TAG: request_id}
        run_id = self.find_run(experiment, request_id)
        if run_id is not None:
            run = TrackedRun(self._client, run_id, is_resumed=True)
            with _door():
                self._client.update_run(run_id, status="RUNNING")
                self._client.set_tag(run_id, FAILURE_TAG, "")
            run.set_tags(all_tags)
            return run
        with _door():
            created = self._client.create_run(experiment_id, tags=all_tags, run_name=name)
        return TrackedRun(self._client, str(created.info.run_id), is_resumed=False)

    def _experiment(self, name: str) -> str:
        with (
            _door(),
            exclusive(
                self._settings.storage_path / "locks" / "tracking.lock",
                what="the tracking database",
                wait_s=_FIRST_USE_WAIT_S,
            ),
        ):
            found = self._client.get_experiment_by_name(name)
            if found is not None:
                return str(found.experiment_id)
            # A tracking server keeps artifacts where it was told to; a database leaves it to us.
            location = None
            if not self._uri.startswith(("http://", "https://")):
                location = str(self._settings.artifacts_path / name)
            return str(self._client.create_experiment(name, artifact_location=location))


def _quotable(text: str) -> str:
    if "'" in text or "`" in text:
        raise UserError(f"the request id {text!r} has a quote in it", next_step="leave it out")
    return text


def _now_ms() -> int:
    return int(time.time() * 1000)


@contextlib.contextmanager
def _door() -> Iterator[None]:
    """Translate what MLflow raises."""
    try:
        yield
    except mlflow.exceptions.MlflowException as error:
        raise PenstockError(
            f"MLflow's tracking failed: {redact(str(error))}",
            next_step="see that tracking.uri names a database that is up and of this version",
        ) from error
