"""Which features a model needs: ranked over folds of time, before its test has begun.

Everything is measured on folds of time that end before the model's test begins, so that the test
stays unseen; the rule stands in `feature_ranking`.
"""

from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from functools import partial
from typing import Any, TypeVar

import numpy as np
import polars as pl

from penstock.cluster.tasks import RunTasks, runner
from penstock.data import tables
from penstock.errors import DeclarationError, TrainingDataError, UserError
from penstock.features.pinned_rows import PinnedRows
from penstock.features.suggested_service import service_text
from penstock.features.training_set import TrainingSet, build_training_set, read_training_set
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings
from penstock.training import importance
from penstock.training.declarations import Model, TimeSplit
from penstock.training.feature_ranking import (
    Interval,
    RankedFeature,
    RedundantPair,
    find_twins,
    interval,
    needed_twins,
    rank,
    redundant_pairs,
    rule,
)
from penstock.training.importance import Array, Fold, FoldAddition
from penstock.training.metrics import evaluate
from penstock.training.study_folds import StudyFolds, study_folds
from penstock.training.validation import Examples, split, to_examples

_MIN_FOLDS = 2
_MAX_ROWS = 50_000
T = TypeVar("T")


class FoldSummary(Record):
    """One fold and how well boosted trees did on it."""

    train_start: str
    train_end: str
    test_start: str
    test_end: str
    num_training_rows: int
    num_test_rows: int
    metric_of_all: float
    """The model's primary metric, of boosted trees on every feature."""
    metric_of_kept: float
    """The same on the kept ones. Chosen on these very folds, they look a little too good."""


class Selection(Record):
    """The ranking, what it was made from, and the service that it suggests."""

    use_case: str
    model: str
    service: str
    metric: str
    seed: int
    training_set_id: str
    table_versions: dict[str, int]
    kind_of_folds: str
    folds: tuple[FoldSummary, ...]
    folds_left_out: tuple[str, ...]
    """Why each of these folds could not be used."""
    features: tuple[RankedFeature, ...]
    """The most important first; redundant ones last, by mutual information."""
    noise: Interval
    """The importance that columns of noise reached."""
    redundant_pairs: tuple[RedundantPair, ...]
    rule: str
    suggestion: str
    """A feature service of the kept features, as Python text."""

    @property
    def kept(self) -> list[str]:
        """The features that are kept."""
        return [feature.name for feature in self.features if feature.is_kept]


def select(
    settings: Settings,
    model: Model,
    *,
    num_folds: int = 5,
    top: int | None = None,
    service: str | None = None,
    seed: int = 0,
    progress: Progress = silent,
    run: RunTasks | None = None,
) -> Selection:
    """Rank the features of the model's service, or of a wider one, and suggest a service.

    Args:
        settings: where the tables are.
        model: its label, split and primary metric.
        num_folds: how many folds of time.
        top: keep at most so many.
        service: the candidates, where they are not those of the model's own service.
        seed: decides every draw; the same seed on the same tables gives the same answer.
        progress: hears of each step.
        run: where the folds run; None: on the Ray that this process is connected to, else here.

    Raises:
        NotFoundError: no such service, or the tables were not built.
        TrainingDataError: fewer than two folds can be used.
        UserError: fewer than two folds were asked for.
    """
    if num_folds < _MIN_FOLDS:
        raise UserError(
            f"{num_folds} folds say nothing of how stable a ranking is",
            allowed=f"{_MIN_FOLDS} or more",
        )
    run = run or runner()
    service = service or model.feature_service
    plan = study_folds(model, num_folds, first_event(settings, model))
    made = build_training_set(
        settings,
        use_case=model.use_case,
        service=service,
        label_table=model.label_table,
        label=model.known_label,
        start=plan.start,
        end=plan.end,
        extra_columns=model.group_columns,
        progress=progress,
    )
    if model.label in made.feature_names:
        raise DeclarationError(f"the feature service {service} holds the label {model.label!r}")
    rows = read_training_set(made)
    folds, used, left_out = _folds(rows, made, model, plan, seed)
    names = made.feature_names

    def over_folds(
        step: str, function: Callable[..., T], kept: Sequence[int] | None = None, **more: Any
    ) -> list[T]:
        asked = folds if kept is None else [importance.keep(fold, kept) for fold in folds]
        results = run(function, [{"fold": fold, **more} for fold in asked])
        return _followed(progress, step, results, len(folds))

    information = over_folds("mutual information", importance.mutual_information)
    correlations = importance.rank_correlations(_pooled(folds), names)
    twins = find_twins(correlations, np.mean(information, axis=0))
    measure = partial(_measure, model)
    standing = [place for place in range(len(names)) if place not in twins]
    additions: list[FoldAddition] = []
    if twins:
        asked: dict[str, Any] = {"standing": standing, "added": list(twins), "measure": measure}
        additions = over_folds("alike features", importance.added_value, **asked)
        standing = sorted([*standing, *needed_twins(list(twins), additions)])
    found = over_folds(
        "permutation importance", importance.permutation_importance, standing, measure=measure
    )
    ranked = rank(names, information, standing, found, twins, additions, top)
    kept_if = rule(len(folds), top)
    made_from = (
        f"Training set {made.id[:16]}, {len(folds)} {plan.kind} folds from {plan.start:%Y-%m-%d} "
        f"to {plan.end:%Y-%m-%d}, {model.primary_metric}, seed {seed}."
    )
    kept = [feature.name for feature in ranked if feature.is_kept]
    places = [names.index(name) for name in kept]
    of_all = over_folds("all features", importance.score_alone, measure=measure)
    of_kept = over_folds("kept features", importance.score_alone, places, measure=measure)
    text = service_text(settings, model.use_case, service, kept, notes=(kept_if, made_from))
    return Selection(
        use_case=model.use_case,
        model=model.name,
        service=service,
        metric=model.primary_metric,
        seed=seed,
        training_set_id=made.id,
        table_versions=made.table_versions,
        kind_of_folds=plan.kind,
        folds=tuple(
            _summary(model, *each) for each in zip(folds, used, of_all, of_kept, strict=True)
        ),
        folds_left_out=tuple(left_out),
        features=tuple(ranked),
        noise=interval([each.noise for each in found]),
        redundant_pairs=tuple(redundant_pairs(correlations, names)),
        rule=kept_if,
        suggestion=text,
    )


def first_event(settings: Settings, model: Model) -> datetime:
    """Give the moment at which the label table begins.

    Raises:
        TrainingDataError: it has no rows.
    """
    time = PinnedRows(settings, model.label_table, None).event_time
    summaries = tables.column_summaries(settings, model.label_table)
    first: datetime | None = next(each.low for each in summaries if each.name == time)
    if first is None:
        raise TrainingDataError(
            f"{model.label_table} has no rows", next_step="penstock data ingest"
        )
    return first


def _folds(
    rows: pl.DataFrame, made: TrainingSet, model: Model, plan: StudyFolds, seed: int
) -> tuple[list[Fold], list[TimeSplit], list[str]]:
    folds, used, left_out = [], [], []
    for number, fold in enumerate(plan.folds):
        sides = split(rows, fold, event_time=made.event_time, label=model.label)
        try:
            train, test = (
                importance.sample(_examples(side, made, model, words), _MAX_ROWS, seed + number)
                for side, words in zip(sides, ("training", "test"), strict=True)
            )
        except TrainingDataError as error:
            left_out.append(f"{fold.train_start:%Y-%m-%d} to {fold.test_end:%Y-%m-%d}: {error}")
            continue
        folds.append(
            Fold(
                train=train,
                test=test,
                feature_names=made.feature_names,
                task=model.task,
                seed=seed + number,
            )
        )
        used.append(fold)
    if len(folds) < _MIN_FOLDS:
        raise TrainingDataError(
            f"{len(folds)} of {len(plan.folds)} folds can be used: {' '.join(left_out)}",
            allowed=f"{_MIN_FOLDS} or more",
            next_step="ask for fewer folds, which are longer, or ingest earlier events",
        )
    return folds, used, left_out


def _examples(side: pl.DataFrame, made: TrainingSet, model: Model, words: str) -> Examples:
    return to_examples(
        side, feature_names=made.feature_names, label=model.label, side=words, task=model.task
    )


def _followed(progress: Progress, step: str, results: Iterator[T], total: int) -> list[T]:
    progress(step, 0, total, unit="folds")
    done = []
    for result in results:
        done.append(result)
        progress(step, len(done), total, unit="folds")
    return done


def _summary(
    model: Model, fold: Fold, cut: TimeSplit, of_all: float, of_kept: float
) -> FoldSummary:
    sign = 1 if model.higher_is_better(model.primary_metric) else -1
    return FoldSummary(
        train_start=cut.train_start_utc.isoformat(),
        train_end=cut.train_end_utc.isoformat(),
        test_start=cut.test_start_utc.isoformat(),
        test_end=cut.test_end_utc.isoformat(),
        num_training_rows=fold.train.num_rows,
        num_test_rows=fold.test.num_rows,
        metric_of_all=sign * of_all,
        metric_of_kept=sign * of_kept,
    )


def _pooled(folds: Sequence[Fold]) -> Array:
    # The training sides: what a fold is tested on decides nothing in it.
    each = max(_MAX_ROWS // len(folds), 1)
    return np.concatenate(
        [importance.sample(fold.train, each, fold.seed).features for fold in folds]
    )


def _measure(model: Model, test: Examples, scores: Array) -> float:
    metric = next(m for m in model.metrics if m.name == model.primary_metric)
    value = evaluate([metric], test, scores)[metric.name]
    return value if metric.higher_is_better else -value
