"""Searches the parameters of a model: training set, folds, trials, pictures, on one tracked run."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from penstock.errors import UserError
from penstock.features.training_set import TrainingSet
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.prices import SECONDS_PER_HOUR
from penstock.progress import Progress, silent
from penstock.settings import Settings
from penstock.training.declarations import Model
from penstock.training.estimators.base import FitJob
from penstock.training.model_rows import rows_of, tracked_training_set
from penstock.training.search import pictures
from penstock.training.search.asked import Asked
from penstock.training.search.controller import Controller, Plan, Watch, best
from penstock.training.search.families_space import declared_values, split_values
from penstock.training.search.leaderboard import (
    choose_ensemble,
    entry,
    keep_scores,
    lines_of,
    one_row_latency_us,
)
from penstock.training.search.ledger import Ledger, Trial
from penstock.training.search.measuring import Measurement, PreparedFold, measure, prepare
from penstock.training.search.one_task import for_one_task, num_cpus
from penstock.training.search.population import declared_of, trail_of
from penstock.training.search.proposals import Space
from penstock.training.search.summary import Tuning, axes, summarise
from penstock.training.search.tasks import Tasks, result_of, tasks
from penstock.training.search.winner import AUTO
from penstock.training.search_declarations import with_values
from penstock.training.selection import first_event
from penstock.training.study_folds import StudyFolds, study_folds
from penstock.training.tracking import TrackedRun, Tracking

_TRIAL_TAG = "penstock.trial_state"
_RESULT_FILE = "tuning.json"
_LEDGER_FILE = "ledger.jsonl"


def tuning_folder(settings: Settings, run_id: str) -> Path:
    """Where a search's record and pictures lie."""
    return settings.storage_path / "tuning" / run_id


def tune(
    settings: Settings,
    model: Model,
    asked: Asked,
    *,
    request_id: str,
    progress: Progress = silent,
    watch: Callable[[Sequence[Trial]], None] = lambda _trials: None,
) -> Tuning:
    """Search the parameters over folds that end before the model's test begins.

    A second call for the same request goes on where the first one was ended, and repeats nothing
    that it had measured; where the first had finished, it gives its result.

    Args:
        settings: where tables, runs and the tracking database are, and what CPUs cost.
        model: what the use case declares.
        asked: the search.
        request_id: names the request over all attempts.
        progress: hears of each step.
        watch: hears of all trials whenever one was measured.

    Raises:
        UserError: the model has no label, the budget ends before one trial is measured, or the
            request id names another search.
        TrainingDataError: a fold, or every trial, cannot be trained on.
        BusyError: the same request is being worked on.
    """
    if model.label is None:
        raise UserError(
            f"{model.name} has no label, so no trial is better than another",
            allowed="a model with a label",
        )
    tracking = Tracking.open(settings)
    experiment = f"{model.name}-tuning"
    known = tracking.find_run(experiment, request_id)
    if known is not None and (finished := read_tuning(settings, known)) is not None:
        tracking.finish(known)
        return finished
    tags = {"penstock.use_case": model.use_case, "penstock.model": model.name}
    name = f"{AUTO if asked.is_auto else '-'.join(asked.searches)}-{request_id[:8]}"
    with (
        exclusive(
            settings.storage_path / "locks" / f"tuning-{model.name}-{request_id}.lock",
            what=f"the search {request_id}",
        ),
        tracking.run(experiment=experiment, name=name, request_id=request_id, tags=tags) as tracked,
    ):
        attempt = _Attempt(settings, model, asked, request_id, tracking, tracked, progress, watch)
        return attempt.run()


def read_tuning(settings: Settings, run_id: str) -> Tuning | None:
    """Read the record of a search that is over; None where there is none."""
    file = tuning_folder(settings, run_id) / _RESULT_FILE
    return Tuning.model_validate_json(file.read_bytes()) if file.is_file() else None


class _Attempt:
    """One attempt at a search."""

    def __init__(
        self,
        settings: Settings,
        model: Model,
        asked: Asked,
        request_id: str,
        tracking: Tracking,
        tracked: TrackedRun,
        progress: Progress,
        watch: Callable[[Sequence[Trial]], None],
    ) -> None:
        self._settings = settings
        self._model = model
        self._asked = asked
        self._request_id = request_id
        self._tracking = tracking
        self._tracked = tracked
        self._progress = progress
        self._watch = watch
        self._folder = tuning_folder(settings, tracked.run_id)
        self._checkpoints = settings.storage_path / "checkpoints" / tracked.run_id
        self._recorder = ThreadPoolExecutor(1, thread_name_prefix="trials")
        self._recorded: dict[int, Future[None]] = {}

    def run(self) -> Tuning:
        plan = study_folds(
            self._model, self._asked.num_folds, first_event(self._settings, self._model)
        )
        made = tracked_training_set(
            self._settings,
            self._model,
            self._tracked,
            start=plan.start,
            end=plan.end,
            progress=self._progress,
        )
        frame = rows_of(made, self._model, start=plan.start, end=plan.end)
        self._progress("folds", 0, len(plan.folds), unit="folds")
        folds = [self._prepared(frame, made, fold) for fold in plan.folds]
        self._progress("folds", len(folds), len(folds), unit="folds")
        ledger = Ledger(self._folder / _LEDGER_FILE, self._described(made))
        self._tracked.log_params(
            {
                "searched": ", ".join(self._asked.searches),
                "stopping": self._asked.rule,
                "num_folds": len(folds),
                "kind_of_folds": plan.kind,
                "seed": self._asked.seed,
                **{f"budget_{key}": value for key, value in self._asked.budget},
            }
        )
        # One thread: a trial's run in MLflow takes as long as many a fit, which need not wait.
        with self._recorder:
            running = tasks(self._asked.num_parallel)
            shared = [running.share(fold) for fold in folds]
            reason = self._search(ledger, running, shared)
            for future in self._recorded.values():
                future.result()
        tuning = self._summary(ledger, plan, made, reason)
        if self._asked.is_auto:
            tuning = self._with_ensemble(tuning, ledger, folds, running, shared)
        self._finish(tuning)
        return tuning

    def _prepared(self, frame: pl.DataFrame, made: TrainingSet, fold: Any) -> PreparedFold:
        return prepare(
            frame,
            self._model,
            fold,
            event_time=made.event_time,
            feature_names=made.feature_names,
            job=FitJob(
                name="trial",
                checkpoints=self._folder,
                import_folders=(self._settings.feature_repo, str(self._settings.feature_repo_path)),
            ),
        )

    def _described(self, made: TrainingSet) -> dict[str, Any]:
        """What makes it this search and no other; a larger budget does not."""
        planned = self._asked.population
        return {
            "training set": made.id,
            "space": {n: s.model_dump(mode="json") for n, s in self._asked.searches.items()},
            "estimators": {n: e.model_dump(mode="json") for n, e in self._asked.estimators.items()},
            "stopping": self._asked.rule,
            "families": self._asked.is_auto,
            "folds": self._asked.num_folds,
            "seed": self._asked.seed,
            **({"population": planned.model_dump()} if planned else {}),
        }

    def _search(self, ledger: Ledger, running: Tasks, shared: Sequence[Any]) -> str:
        asked, model = self._asked, self._model
        configs = {name: for_one_task(config) for name, config in asked.estimators.items()}

        def start(trial: Trial, fold: int) -> None:
            net = configs[trial.estimator]
            trail = None
            if asked.population is not None:
                config, policy = declared_of(trial, ledger.trials, asked.population, net), None
                trail = trail_of(trial, fold, self._checkpoints)
            else:
                own, policy = split_values(trial.params)
                config = with_values(net, own, of=f"trial {trial.number}")
            running.start(
                (trial.number, fold),
                measure,
                shared[fold],
                config,
                model.metrics,
                policy,
                trail,
                num_cpus=num_cpus(config),
            )

        plan = Plan(
            space=Space(
                searches=asked.searches,
                declared={
                    name: declared_values(configs[name], search)
                    for name, search in asked.searches.items()
                },
                seed=asked.seed,
                metric=model.primary_metric,
                higher_is_better=model.higher_is_better(model.primary_metric),
            ),
            # The newest first: it says the most of what comes after it.
            folds=tuple(reversed(range(len(shared)))),
            budget=asked.budget,
            rule=asked.rule,
            money_per_cpu_s=self._settings.cost.per_cpu_hour / SECONDS_PER_HOUR,
            num_cpus={name: num_cpus(config) for name, config in configs.items()},
            population=asked.population,
        )
        known = self._tracking.children(self._tracked) if self._tracked.is_resumed else {}
        hears = Watch(
            changed=partial(self._changed, ledger),
            ended=partial(self._record, known),
            measured=self._keep_scores,
        )
        return Controller(plan, ledger, running, start, hears).run()

    def _changed(self, ledger: Ledger, trials: Sequence[Trial]) -> None:
        done = sum(trial.state != "running" for trial in trials)
        self._progress("trials", done, self._asked.budget.num_trials, unit="trials")
        self._watch(trials)

    def _keep_scores(self, trial: int, fold: int, found: Measurement) -> None:
        """Keep what an ensemble is chosen by, before the ledger says that it is there."""
        if self._asked.is_auto:
            keep_scores(self._folder, trial, fold, found.scores)

    def _with_ensemble(
        self,
        tuning: Tuning,
        ledger: Ledger,
        folds: Sequence[PreparedFold],
        running: Tasks,
        shared: Sequence[Any],
    ) -> Tuning:
        """Choose the ensemble, and stand it beside the best of each family."""
        ranked = best(ledger.trials, metric=tuning.metric, higher_is_better=tuning.higher_is_better)
        self._progress("ensemble", 0, None, unit="members")
        chosen, taken = choose_ensemble(
            self._model, self._asked.estimators, ranked, folds, self._folder
        )
        lines = lines_of(self._asked.estimators, ranked, chosen, taken)
        entries = []
        for number, (name, config, trials) in enumerate(lines):
            self._progress("leaderboard", number, len(lines), unit="lines")
            running.start(name, one_row_latency_us, shared[-1], config, num_cpus=1)
            latency_us = result_of(running)
            entries.append(
                entry(self._model, name, trials, folds, self._folder, latency_us=latency_us)
            )
        sign = -1 if tuning.higher_is_better else 1
        entries.sort(key=lambda each: sign * each.metrics[tuning.metric])
        return tuning.model_copy(update={"ensemble": chosen, "leaderboard": tuple(entries)})

    def _record(self, known: Mapping[str, tuple[str, bool]], trial: Trial) -> None:
        """Leave the trial as a run beneath the search's."""
        if trial.number in self._recorded:
            return
        measured = list(trial.folds.values())
        value = trial.value(self._model.primary_metric)
        self._recorded[trial.number] = self._recorder.submit(
            self._tracking.record_child,
            self._tracked,
            known,
            request_id=f"{self._request_id}-trial-{trial.number}",
            name=f"trial {trial.number}",
            params={"estimator": trial.estimator, **trial.params},
            history=[fold.metrics for fold in measured],
            metrics={
                "fit_s": trial.fit_s,
                "num_folds": len(measured),
                **({} if value is None else {"mean": value}),
            },
            tags={_TRIAL_TAG: trial.reason or trial.state},
            status="FAILED" if trial.state == "failed" else "FINISHED",
        )

    def _summary(self, ledger: Ledger, plan: StudyFolds, made: TrainingSet, reason: str) -> Tuning:
        model = self._model
        metric = model.primary_metric
        higher_is_better = model.higher_is_better(metric)
        cost = self._settings.cost
        winner = best(ledger.trials, metric=metric, higher_is_better=higher_is_better)[0]
        planned, net = self._asked.population, model.estimators.get(winner.estimator)
        return Tuning(
            run_id=self._tracked.run_id,
            request_id=self._request_id,
            model=model.name,
            use_case=model.use_case,
            metric=metric,
            higher_is_better=higher_is_better,
            training_set_id=made.id,
            table_versions=made.table_versions,
            kind_of_folds=plan.kind,
            folds=tuple(
                {
                    "train_start": fold.train_start_utc.isoformat(),
                    "train_end": fold.train_end_utc.isoformat(),
                    "test_start": fold.test_start_utc.isoformat(),
                    "test_end": fold.test_end_utc.isoformat(),
                }
                for fold in plan.folds
            ),
            seed=self._asked.seed,
            stopping=self._asked.rule,
            trials=summarise(ledger.trials, metric),
            best=winner.number,
            tuned=declared_of(winner, ledger.trials, planned, net) if planned and net else None,
            reason=reason,
            elapsed_s=round(ledger.elapsed_s, 3),
            cpu_s=round(ledger.cpu_s, 3),
            money=cost.money(cpu_s=ledger.cpu_s),
            currency=cost.currency,
            pictures=tuple(
                str(self._folder / name)
                for name in (pictures.HISTORY_FILE, pictures.PARALLEL_FILE, pictures.PAGE_FILE)
            ),
        )

    def _finish(self, tuning: Tuning) -> None:
        pictures.draw(tuning, axes(self._asked.searches), self._folder)
        winner = tuning.winner
        self._tracked.log_metrics(
            {
                f"best_{tuning.metric}": winner.value or 0.0,
                "num_trials": len(tuning.trials),
                "cpu_s": tuning.cpu_s,
                "money": tuning.money,
            }
        )
        self._tracked.set_tags(
            {
                "penstock.best_trial": str(winner.number),
                "penstock.best_estimator": winner.estimator,
                "penstock.ended": tuning.reason,
            }
        )
        self._tracked.log_artifacts(self._folder)
        # Last: a search whose record is there is never begun again.
        written = orjson.dumps(tuning.model_dump(mode="json"), option=orjson.OPT_INDENT_2)
        write_whole(self._folder / _RESULT_FILE, written)
        shutil.rmtree(self._checkpoints, ignore_errors=True)
