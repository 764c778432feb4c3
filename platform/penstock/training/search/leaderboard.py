"""What came out of a search of families: the ensemble beside the best of each family."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.files import write_whole
from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.bootstrap import bounds, resample
from penstock.training.declarations import Ensemble, Estimator, Member, Model, PreprocessingPolicy
from penstock.training.estimators import ensemble, families
from penstock.training.metrics import evaluate
from penstock.training.search.families_space import split_values
from penstock.training.search.ledger import Trial
from penstock.training.search.measuring import PreparedFold
from penstock.training.search.one_task import for_one_task
from penstock.training.search.selecting import choose_members
from penstock.training.search.summary import LeaderboardEntry, parameters_as_text
from penstock.training.search_declarations import with_values

Scores = npt.NDArray[np.float32]
_MAX_CANDIDATES = 15
_LATENCY_CALLS = 200
_OF_ONE_FAMILY = 3


def scores_file(folder: Path, trial: int, fold: int) -> Path:
    """Where a trial's scores of a fold lie."""
    return folder / "scores" / f"{trial}-{fold}.f32"


def keep_scores(folder: Path, trial: int, fold: int, scores: Scores) -> None:
    """Write a trial's scores of a fold, whole."""
    write_whole(scores_file(folder, trial, fold), scores.tobytes())


def read_scores(folder: Path, trial: int, num_folds: int) -> list[Scores]:
    """Read a trial's scores of every fold."""
    return [
        np.frombuffer(scores_file(folder, trial, fold).read_bytes(), dtype=np.float32)
        for fold in range(num_folds)
    ]


def candidates_of(ranked: Sequence[Trial]) -> list[Trial]:
    """Choose who may be a member: the best few of each family, so that they differ."""
    taken: dict[str, int] = {}
    chosen = []
    for trial in ranked:
        if taken.get(trial.estimator, 0) < _OF_ONE_FAMILY:
            taken[trial.estimator] = taken.get(trial.estimator, 0) + 1
            chosen.append(trial)
    return chosen[:_MAX_CANDIDATES]


def choose_ensemble(
    model: Model,
    estimators: Mapping[str, Estimator],
    ranked: Sequence[Trial],
    folds: Sequence[PreparedFold],
    folder: Path,
) -> tuple[Ensemble, dict[int, int]]:
    """Choose the ensemble on the folds' test rows; give how often each trial was taken, too."""
    metric = next(m for m in model.metrics if m.name == model.primary_metric)
    sign = 1.0 if metric.higher_is_better else -1.0

    def measure(fold: int, scores: npt.NDArray[np.float64]) -> float:
        return sign * evaluate([metric], folds[fold].test_rows, scores)[metric.name]

    chosen = candidates_of(ranked)
    scores = {trial.number: read_scores(folder, trial.number, len(folds)) for trial in chosen}
    taken, _ = choose_members(scores, measure)
    by_number = {trial.number: trial for trial in chosen}
    members = [
        member_of(estimators, by_number[number], weight=count) for number, count in taken.items()
    ]
    return Ensemble(members=tuple(members)), taken


def lines_of(
    estimators: Mapping[str, Estimator],
    ranked: Sequence[Trial],
    chosen: Ensemble,
    taken: Mapping[int, int],
) -> list[tuple[str, Ensemble, dict[int, tuple[Trial, int]]]]:
    """Name what the leaderboard compares: the ensemble, and each family's best trial."""
    by_number = {trial.number: trial for trial in ranked}
    members = {number: (by_number[number], count) for number, count in taken.items()}
    lines = [("ensemble", chosen, members)]
    seen: set[str] = set()
    for trial in ranked:
        if trial.estimator not in seen:
            seen.add(trial.estimator)
            alone = Ensemble(members=(member_of(estimators, trial, weight=1),))
            lines.append((trial.estimator, alone, {trial.number: (trial, 1)}))
    return lines


def member_of(estimators: Mapping[str, Estimator], trial: Trial, *, weight: float) -> Member:
    """Give a trial as a member."""
    own, policy = split_values(trial.params)
    config = with_values(for_one_task(estimators[trial.estimator]), own, of=f"trial {trial.number}")
    return Member(
        estimator=config,
        preprocessing=policy or PreprocessingPolicy(scaling="none"),
        weight=weight,
    )


def entry(
    model: Model,
    name: str,
    trials: Mapping[int, tuple[Trial, int]],
    folds: Sequence[PreparedFold],
    folder: Path,
    *,
    latency_us: float,
) -> LeaderboardEntry:
    """Measure one line of the leaderboard, from the trials' scores and how often each counts."""
    total = sum(count for _, count in trials.values())
    per_fold: list[npt.NDArray[np.float64]] = [
        np.sum(
            [
                read_scores(folder, number, len(folds))[fold].astype(np.float64) * count / total
                for number, (_, count) in trials.items()
            ],
            axis=0,
        )
        for fold in range(len(folds))
    ]
    metrics = [
        evaluate(model.metrics, fold.test_rows, scores)
        for fold, scores in zip(folds, per_fold, strict=True)
    ]
    primary = [m for m in model.metrics if m.name == model.primary_metric]
    drawn = [
        resample(primary, fold.test_rows, scores, model.bootstrap, stream=number)
        for number, (fold, scores) in enumerate(zip(folds, per_fold, strict=True))
    ]
    low, high = bounds(
        np.mean([each[model.primary_metric] for each in drawn], axis=0), model.bootstrap.level
    )
    told = "; ".join(
        f"{count / total:.2f} x trial {number} {trial.estimator}"
        if len(trials) > 1
        else parameters_as_text(trial.params)
        for number, (trial, count) in trials.items()
    )
    return LeaderboardEntry(
        name=name,
        metrics={key: float(np.mean([each[key] for each in metrics])) for key in metrics[0]},
        low=low,
        high=high,
        fit_s=sum(trial.fit_s / len(trial.folds) for trial, _ in trials.values()),
        latency_us=latency_us,
        told=told,
    )


def one_row_latency_us(fold: PreparedFold, config: Ensemble) -> float:
    """Fit on the fold, and time the one graph on one row: the median, in microseconds."""
    columns = fold.train.astype(np.float64)
    names = tuple(f"column_{place}" for place in range(columns.shape[1]))
    again, fitted = [], []
    for number, member in enumerate(config.members):
        own = preprocessing.fit(columns, feature_names=names, policy=member.preprocessing)
        job = replace(fold.job, name=f"{fold.job.name}-{number}")
        again.append(own)
        fitted.append(
            families.fit_here(member.estimator, own.apply(columns), fold.train_labels, job)
        )
    graph = bundle.assemble(fold.scaling, ensemble.together(config, again, fitted))
    score: Any = load_scorer(graph)
    row = np.zeros((1, len(fold.scaling.means)))
    taken_s = []
    for _ in range(_LATENCY_CALLS):
        started_s = time.perf_counter()
        score(row)
        taken_s.append(time.perf_counter() - started_s)
    return round(median(taken_s) * 1e6, 1)
