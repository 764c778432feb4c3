"""Measures an estimator on the model's folds, as one tracked run that registers nothing.

Each fold is written down as it is there; the same request again goes on with the missing ones.
"""

import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl

from penstock.errors import GateRefusedError
from penstock.features.training_set import TrainingSet
from penstock.files import write_whole
from penstock.progress import Progress, silent
from penstock.settings import Settings
from penstock.training import environment
from penstock.training.bootstrap import named_bounds
from penstock.training.code_state import CodeState
from penstock.training.cross_validation import FoldResult, FoldScores, each_fold
from penstock.training.declarations import Fold, Model
from penstock.training.estimators.base import FitJob
from penstock.training.fold_declarations import in_words, remark_on, span_of
from penstock.training.fold_records import FoldRecord, FoldsRun, Summary, read_fold, write_fold
from penstock.training.folds import Counts, count_folds
from penstock.training.model_rows import rows_of, tracked_training_set
from penstock.training.runs import run_folder
from penstock.training.tracking import (
    BASELINE,
    ESTIMATOR_TAG,
    FOLD_ROWS_TAG,
    FOLDS_TAG,
    TrackedRun,
    Tracking,
)
from penstock.training.validation import suspect_leak

_RECORD_FILE = "folds.json"
_BY_FOLD = "fold_"
"""Before the name of a metric: its values by fold, as steps."""
_DEVIATION = "_deviation"


def measure_each(
    settings: Settings,
    model: Model,
    names: Sequence[str],
    *,
    request_id: str,
    code: CodeState,
    progress: Progress = silent,
    tell: Callable[[str], None] = print,
) -> tuple[list[FoldsRun], list[Exception]]:
    """Measure one estimator after the other; one that fails takes nothing from the others.

    Args:
        settings: where tables, runs and the tracking database are.
        model: what the use case declares.
        names: of its estimators.
        request_id: names the request over all attempts.
        code: what ran.
        progress: hears of each fold.
        tell: hears of each failure.

    Returns:
        What was measured, in the order of the names, and what failed.
    """
    runs, failures = [], []
    for name in names:
        try:
            runs.append(
                measure_on_folds(
                    settings,
                    model,
                    estimator=name,
                    request_id=f"{request_id}-{name}-folds",
                    code=code,
                    progress=progress,
                )
            )
        except Exception as error:  # noqa: BLE001  # the caller raises it after the others' turn
            tell(f"{name} failed: {error}")
            failures.append(error)
    return runs, failures


def measure_on_folds(
    settings: Settings,
    model: Model,
    *,
    estimator: str,
    request_id: str,
    code: CodeState,
    progress: Progress = silent,
) -> FoldsRun:
    """Measure one estimator on the model's folds.

    A second call for the same request goes on with the first one's run, training set and folds,
    and gives its result where it had finished.

    Args:
        settings: where tables, runs and the tracking database are.
        model: what the use case declares.
        estimator: one of the model's.
        request_id: names the request over all attempts.
        code: what ran.
        progress: hears of each fold.

    Raises:
        NotFoundError: the model has no such estimator.
        TrainingDataError: a fold cannot be trained on.
        GateRefusedError: the mean of a metric is too good to be true: the future leaked in.
    """
    model.estimator(estimator)
    tracking = Tracking.open(settings)
    known = tracking.find_run(model.name, request_id)
    if known is not None and (finished := _read(settings, known)) is not None:
        # Killed between the record and its mark, the run would be called running for ever.
        tracking.finish(known)
        return finished
    remark = remark_on(model.folds)
    tags = {
        "penstock.use_case": model.use_case,
        "penstock.model": model.name,
        ESTIMATOR_TAG: estimator,
        FOLDS_TAG: remark or "time is respected",
        **({"mlflow.source.git.commit": code.commit} if code.commit else {}),
    }
    run_name = f"{estimator}-folds-{request_id[:8]}"
    with tracking.run(
        experiment=model.name, name=run_name, request_id=request_id, tags=tags
    ) as tracked:
        return _Attempt(settings, model, estimator, request_id, tracked, progress, code).run()


class _Attempt:
    """One attempt at a request."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        name: str,
        request_id: str,
        tracked: TrackedRun,
        progress: Progress,
        code: CodeState,
    ) -> None:
        self._settings = settings
        self._model = model
        self._name = name
        self._config = model.estimator(name)
        self._request_id = request_id
        self._tracked = tracked
        self._progress = progress
        self._code = code
        self._started = datetime.now(UTC)
        self._packages = environment.packages()
        self._folder = run_folder(settings, tracked.run_id)
        self._checkpoints = settings.storage_path / "checkpoints" / tracked.run_id

    def run(self) -> FoldsRun:
        model = self._model
        folds = model.folds.folds()
        self._progress(f"{self._name}: training set", 0, unit="rows")
        spans = [span_of(fold) for fold in folds]
        start, end = min(first for first, _ in spans), max(last for _, last in spans)
        made = tracked_training_set(
            self._settings, model, self._tracked, start=start, end=end, progress=self._progress
        )
        frame = rows_of(made, model, start=start, end=end)
        # Before the first fit, so that a later fold's lack of rows costs none.
        counts = count_folds(frame, model, event_time=made.event_time, folds=folds)
        self._log_start(counts, made)
        scores = FoldScores(folds=tuple(self._measured(frame, made, folds)))
        run = self._describe(made, scores)
        self._log_end(run)
        leak = suspect_leak(model.leak_alarm, {n: s.mean for n, s in run.metrics.items()})
        if leak is not None:
            raise GateRefusedError(leak.finding, allowed=leak.allowed, next_step=leak.next_step)
        shutil.rmtree(self._checkpoints, ignore_errors=True)
        # Last: a run whose record is there is never begun again.
        write_whole(self._folder / _RECORD_FILE, _as_json(run))
        return run

    def _measured(
        self, frame: pl.DataFrame, made: TrainingSet, folds: tuple[Fold, ...]
    ) -> list[FoldResult]:
        """Give every fold's result: those of earlier attempts, then the missing ones."""
        model = self._model
        self._folder.mkdir(parents=True, exist_ok=True)
        numbered = dict(enumerate(folds, start=1))
        told = {number: self._told(fold) for number, fold in numbered.items()}
        read = {n: read_fold(self._fold_file(n), told[n]) for n in numbered}
        done = {number: found for number, found in read.items() if found is not None}
        missing = [number for number in numbered if number not in done]
        results = each_fold(
            frame,
            model,
            self._config,
            event_time=made.event_time,
            feature_names=made.feature_names,
            folds=[numbered[number] for number in missing],
            numbers=missing,
            job=FitJob(
                name="fold",
                checkpoints=self._checkpoints,
                import_folders=(self._settings.feature_repo, str(self._settings.feature_repo_path)),
            ),
            bootstrap=model.bootstrap,
        )
        self._progress(f"{self._name}: folds", len(done), len(folds), unit="folds")
        for found in results:
            write_fold(self._fold_file(found.number), found, told[found.number])
            done[found.number] = found
            self._log_folds(done)
            self._progress(f"{self._name}: folds", len(done), len(folds), unit="folds")
        return [done[number] for number in sorted(done)]

    def _log_folds(self, done: dict[int, FoldResult]) -> None:
        """Log the folds from the first to the last before one that is missing, as steps."""
        whole = [done[n] for n in range(1, len(done) + 1) if n in done]
        self._tracked.log_history(
            [{f"{_BY_FOLD}{name}": v for name, v in fold.metrics.items()} for fold in whole]
        )

    def _log_start(self, counts: Counts, made: TrainingSet) -> None:
        folds = self._model.folds
        told = [f"trained on {in_words(fold)}" for fold in folds.folds()]
        self._tracked.set_tags({FOLD_ROWS_TAG: "; ".join(told)})
        self._tracked.log_params(
            {
                **self._config.model_dump(mode="json"),
                "estimator": self._name,
                "feature_service": self._model.feature_service,
                "num_features": len(made.feature_names),
                "label": self._model.label,
                "folds": getattr(folds, "kind", "rolling"),
                "num_folds": len(told),
                "interval_level": self._model.bootstrap.level,
                "num_test_rows": counts.num_test_rows,
                "num_test_positives": counts.num_test_positives,
                "environment_digest": environment.digest(self._packages),
            }
        )

    def _log_end(self, run: FoldsRun) -> None:
        ends = named_bounds({name: (found.low, found.high) for name, found in run.metrics.items()})
        deviations = {
            f"{name}{_DEVIATION}": found.deviation
            for name, found in run.metrics.items()
            if found.deviation is not None
        }
        means = {name: found.mean for name, found in run.metrics.items()}
        beside = {f"{BASELINE}{name}": value for name, value in run.baseline.items()}
        self._tracked.log_metrics({**means, **deviations, **ends, **beside, "fit_s": run.fit_s})

    def _describe(self, made: TrainingSet, scores: FoldScores) -> FoldsRun:
        model = self._model
        level = model.bootstrap.level
        declared: tuple[Fold, ...] = model.folds.folds()
        summaries = {}
        for metric in model.metrics:
            low, high = scores.interval(metric.name, level=level)
            summaries[metric.name] = Summary(
                mean=scores.mean(metric.name),
                deviation=scores.deviation(metric.name),
                low=low,
                high=high,
            )
        return FoldsRun(
            run_id=self._tracked.run_id,
            request_id=self._request_id,
            model=model.name,
            use_case=model.use_case,
            estimator=self._name,
            training_set_id=made.id,
            table_versions=made.table_versions,
            validation=model.folds.model_dump(mode="json"),
            remark=remark_on(model.folds),
            folds=tuple(
                FoldRecord(
                    number=found.number,
                    rows=in_words(fold),
                    counts=found.counts,
                    metrics=found.metrics,
                    baseline=found.baseline,
                    fit_s=round(found.fit_s, 3),
                )
                for found, fold in zip(scores.folds, declared, strict=True)
            ),
            metrics=summaries,
            baseline={
                name: float(np.mean([fold.baseline[name] for fold in scores.folds]))
                for name in scores.folds[0].baseline
            },
            level=level,
            seed=self._config.seed,
            git_commit=self._code.commit,
            environment_digest=environment.digest(self._packages),
            started=self._started,
            fit_s=round(scores.fit_s, 3),
        )

    def _fold_file(self, number: int) -> Path:
        return self._folder / f"fold-{number}.npz"

    def _told(self, fold: Fold) -> dict[str, Any]:
        """What decides a fold's result: one that was told otherwise is measured again."""
        model = self._model
        parts = {"config": self._config, "fold": fold, "bootstrap": model.bootstrap}
        return {
            **{name: part.model_dump(mode="json") for name, part in parts.items()},
            "preprocessing": model.preprocessing.model_dump(mode="json"),
            "metrics": [metric.model_dump(mode="json") for metric in model.metrics],
            "baseline": model.baseline,
        }


def _read(settings: Settings, run_id: str) -> FoldsRun | None:
    file = run_folder(settings, run_id) / _RECORD_FILE
    return FoldsRun.model_validate_json(file.read_bytes()) if file.is_file() else None


def _as_json(run: FoldsRun) -> bytes:
    return orjson.dumps(run.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
