"""Trains a model: training set, split, fit, evaluation, bundle, all on one tracked run."""

import shutil
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import orjson

from penstock.errors import GateRefusedError
from penstock.features.training_set import TrainingSet, service_digest
from penstock.files import write_whole
from penstock.progress import Progress, silent
from penstock.settings import Settings
from penstock.training import bundle, code_state, environment, kept_rows, plots
from penstock.training.bootstrap import intervals, named_bounds
from penstock.training.code_state import CodeState
from penstock.training.declarations import Model
from penstock.training.estimators import families
from penstock.training.estimators.base import FitJob, Fitted, Labels, Scaled, Scores
from penstock.training.folds import Counts, EventTimes, FittedFolds, count_folds, fit_folds
from penstock.training.metrics import curves, evaluate
from penstock.training.model_rows import source_rows, tracked_training_set
from penstock.training.row_sources import RowSource
from penstock.training.run_record import signature, training_facts
from penstock.training.runs import (
    PATCH_FILE,
    RUN_FILE,
    SCORES_FILE,
    Provenance,
    Run,
    num_threads,
    predictions_digest,
    read_run,
    run_folder,
)
from penstock.training.tracking import (
    BASELINE,
    ESTIMATOR_TAG,
    REPRODUCTION_TAG,
    TUNING_TAG,
    TrackedRun,
    Tracking,
)
from penstock.training.validation import suspect_leak

_STEPS = ("training set", "fit", "evaluate", "bundle")


def train(
    settings: Settings,
    model: Model,
    *,
    estimator: str | None,
    request_id: str,
    progress: Progress = silent,
    code: CodeState | None = None,
    made_again: Run | None = None,
    tuning_run: str | None = None,
) -> Run:
    """Train one estimator of the model and leave its bundle.

    A second call for the same request goes on with the first one's run and training set, and
    gives its result where it had finished.

    Args:
        settings: where tables, runs and the tracking database are.
        model: what the use case declares.
        estimator: one of the model's; None: its default.
        request_id: names the request over all attempts.
        progress: hears of each step.
        code: the state of the project's checkout, where the working directory is none.
        made_again: the run whose table versions are read, and which this one is marked to repeat.
        tuning_run: the search that found the estimator's parameters.

    Raises:
        NotFoundError: the model has no such estimator.
        TrainingDataError: the training set cannot be trained on.
        GateRefusedError: a metric is too good to be true: the future leaked in.
    """
    name = estimator or model.default_estimator
    model.estimator(name)
    state = code or code_state.take(settings)
    tracking = Tracking.open(settings)
    known = tracking.find_run(model.name, request_id)
    if known is not None and (finished := read_run(settings, known)) is not None:
        # Killed between the record and its mark, the run would be called running for ever.
        tracking.finish(known)
        return finished
    tags = {
        "penstock.use_case": model.use_case,
        "penstock.model": model.name,
        ESTIMATOR_TAG: name,
        **({"mlflow.source.git.commit": state.commit} if state.commit else {}),
        **({REPRODUCTION_TAG: made_again.run_id} if made_again else {}),
        **({TUNING_TAG: tuning_run} if tuning_run else {}),
    }
    with tracking.run(
        experiment=model.name, name=f"{name}-{request_id[:8]}", request_id=request_id, tags=tags
    ) as tracked:
        attempt = _Attempt(settings, model, name, request_id, tracked, progress, state, made_again)
        return attempt.run()


class _Attempt:
    """One attempt at a request, from its training set to its bundle."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        name: str,
        request_id: str,
        tracked: TrackedRun,
        progress: Progress,
        code: CodeState,
        made_again: Run | None,
    ) -> None:
        self._settings = settings
        self._model = model
        self._name = name
        self._config = model.estimator(name)
        self._request_id = request_id
        self._tracked = tracked
        self._progress = progress
        self._code = code
        self._made_again = made_again
        self._started = datetime.now(UTC)
        self._packages = environment.packages()
        # Now: the files may be edited while the fit runs.
        self._code_digest = code_state.code_digest(settings, model.use_case)

    def run(self) -> Run:
        model = self._model
        self._step(0)
        ends = {"start": model.split.train_start_utc, "end": model.split.test_end_utc}
        training_set = tracked_training_set(
            self._settings,
            model,
            self._tracked,
            **ends,
            table_versions=self._made_again.table_versions if self._made_again else None,
            progress=self._progress,
        )
        rows = source_rows(
            self._settings,
            training_set,
            model,
            self._tracked,
            **ends,
            folder=self._folder / "rows",
            progress=self._progress,
        )
        counts = count_folds(rows, self._model, event_time=training_set.event_time)
        self._log_start(training_set, counts)
        self._step(1)
        try:
            folds = fit_folds(
                rows,
                self._model,
                event_time=training_set.event_time,
                feature_names=training_set.feature_names,
                fit=self._fit,
                progress=self._progress,
            )
        finally:
            # What a kill leaves is replaced by the next attempt.
            rows.release()
        self._step(2)
        self._tracked.log_history(folds.fitted.history)
        self._tracked.log_params(folds.fitted.facts)
        metrics = evaluate(self._model.metrics, folds.test, folds.scores)
        baseline = {}
        if folds.guesses is not None:
            baseline = evaluate(self._model.metrics, folds.test, folds.guesses)
        beside = {f"{BASELINE}{name}": value for name, value in baseline.items()}
        drawn = intervals(self._model.metrics, folds.test, folds.scores, self._model.bootstrap)
        beside |= named_bounds(drawn)
        self._tracked.log_metrics({**metrics, **beside, "fit_s": folds.fit_s})
        leak = suspect_leak(self._model.leak_alarm, metrics)
        if leak is not None:
            raise GateRefusedError(leak.finding, allowed=leak.allowed, next_step=leak.next_step)
        self._step(3)
        provenance = self._provenance(rows, folds.scores)
        run = self._describe(training_set, counts, metrics, drawn, folds.fit_s, provenance)
        self._write(run, training_set, folds, baseline)
        with TemporaryDirectory() as folder:
            self._draw(Path(folder), folds, metrics, run)
        folder_of_run = run_folder(self._settings, run.run_id)
        np.save(folder_of_run / SCORES_FILE, folds.scores)
        if self._model.serving.quantization is not None:
            kept_rows.keep(folder_of_run, self._model, folds.test)
        shutil.rmtree(self._folder, ignore_errors=True)
        # Last: a run whose record is there is never begun again.
        file = folder_of_run / RUN_FILE
        write_whole(file, orjson.dumps(run.model_dump(mode="json"), option=orjson.OPT_INDENT_2))
        self._progress("train", len(_STEPS), len(_STEPS), unit="steps")
        return run

    def _step(self, number: int) -> None:
        self._progress(f"{self._name}: {_STEPS[number]}", number, len(_STEPS), unit="steps")

    def _log_start(self, training_set: TrainingSet, counts: Counts) -> None:
        policy = self._model.split
        self._tracked.log_params(
            {
                **self._config.model_dump(mode="json"),
                "estimator": self._name,
                "feature_service": self._model.feature_service,
                "num_features": len(training_set.feature_names),
                "label": self._model.label,
                "train_start": policy.train_start_utc.isoformat(),
                "train_end": policy.folds()[-1].train_end_utc.isoformat(),
                "test_start": policy.test_start_utc.isoformat(),
                "test_end": policy.test_end_utc.isoformat(),
                "label_delay_s": policy.label_delay.total_seconds(),
                "num_fits": len(policy.folds()),
                **{f"preprocessing_{k}": v for k, v in self._model.preprocessing},
                **counts.model_dump(exclude_none=True),
                "environment_digest": environment.digest(self._packages),
            }
        )

    @property
    def _folder(self) -> Path:
        """What a later attempt goes on from, and what is gone with the last one."""
        return self._settings.storage_path / "checkpoints" / self._tracked.run_id

    def _fit(self, fold: int, scaled: Scaled, labels: Labels, event_times: EventTimes) -> Fitted:
        job = FitJob(
            name=f"fold-{fold}",
            checkpoints=self._folder,
            import_folders=(self._settings.feature_repo, str(self._settings.feature_repo_path)),
            event_times=event_times,
            label_delay=self._model.split.label_delay,
        )
        return families.fit(self._config, scaled, labels, job)

    def _provenance(self, rows: RowSource, scores: Scores) -> Provenance:
        settings, model = self._settings, self._model
        found = Provenance(
            training_set_digest=rows.digest(),
            feature_service_digest=service_digest(settings, model.use_case, model.feature_service),
            code_digest=self._code_digest,
            patch_digest=self._code.patch_digest,
            patch_left_out=self._code.left_out,
            hardware=environment.hardware(),
            num_threads=num_threads(self._config),
            predictions_digest=predictions_digest(scores),
        )
        told = found.model_dump(exclude={"hardware", "patch_left_out"}, exclude_none=True)
        self._tracked.set_tags(
            {f"penstock.{name}": str(value) for name, value in told.items()}
            | {"penstock.hardware": found.hardware.model_dump_json()}
        )
        return found

    def _describe(
        self,
        training_set: TrainingSet,
        counts: Counts,
        metrics: dict[str, float],
        intervals: dict[str, tuple[float, float]],
        fit_s: float,
        provenance: Provenance,
    ) -> Run:
        folder = run_folder(self._settings, self._tracked.run_id)
        return Run(
            run_id=self._tracked.run_id,
            request_id=self._request_id,
            model=self._model.name,
            use_case=self._model.use_case,
            estimator=self._name,
            training_set_id=training_set.id,
            table_versions=training_set.table_versions,
            **counts.model_dump(),
            metrics=metrics,
            intervals=intervals,
            seed=self._config.seed,
            git_commit=self._code.commit,
            environment_digest=environment.digest(self._packages),
            provenance=provenance,
            started=self._started,
            fit_s=round(fit_s, 3),
            tuning_run=self._tracked.tag(TUNING_TAG),
            bundle_path=str(folder / "bundle"),
        )

    def _write(
        self,
        run: Run,
        training_set: TrainingSet,
        folds: FittedFolds,
        baseline: Mapping[str, float],
    ) -> None:
        settings, model = self._settings, self._model
        bundle.write(
            Path(run.bundle_path),
            preprocessing=folds.scaling,
            fitted=folds.fitted,
            graph=folds.graph,
            signature=signature(settings, model, self._name, training_set),
            training=training_facts(
                settings, model, run, folds, packages=self._packages, baseline=baseline
            ),
            background=folds.background,
        )

    def _draw(self, folder: Path, folds: FittedFolds, metrics: dict[str, float], run: Run) -> None:
        if self._model.task == "binary":
            plots.draw(curves(folds.test.labels, folds.scores), metrics, folder)
        elif self._model.task == "regression":
            plots.draw_numbers(folds.test.labels, folds.scores, folder)
        else:
            plots.draw_scores(folds.scores, folder)
        option = orjson.OPT_INDENT_2
        (folder / "environment.json").write_bytes(orjson.dumps(self._packages, option=option))
        if self._code.patch:
            (folder / PATCH_FILE).write_bytes(self._code.patch.encode())
            (run_folder(self._settings, run.run_id) / PATCH_FILE).write_bytes(
                self._code.patch.encode()
            )
        described = run.model_dump(mode="json")
        (folder / RUN_FILE).write_bytes(orjson.dumps(described, option=option))
        self._tracked.log_artifacts(folder)
