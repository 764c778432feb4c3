"""How much features tell of a label: mutual information, permutation importance, redundancy.

All of it is decided by the seed, on one thread: sums over threads would change with their number.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.training import preprocessing
from penstock.training.declarations import Task
from penstock.training.validation import Examples

Array = npt.NDArray[Any]

Measure = Callable[[Examples, Array], float]
"""The metric of test examples and scores, turned so that higher is better."""
NUM_NOISE = 3
"""Columns of noise that stand beside the features: who does not matter more, does not matter."""
_NUM_REPEATS = 5
_MAX_DISCRETE = 32


@dataclass(frozen=True, kw_only=True)
class Fold:
    """Both sides of one fold, ready to be studied in any process."""

    train: Examples
    test: Examples
    feature_names: tuple[str, ...]
    task: Task
    seed: int


@dataclass(frozen=True, kw_only=True)
class FoldAddition:
    """What one fold says of features that join those that stand."""

    gains: list[float]
    """By how much the metric improves, for each of them by itself."""
    noise: float
    """The most that a column of noise seemed to add."""


@dataclass(frozen=True, kw_only=True)
class FoldImportance:
    """What one fold says, in the order of the features."""

    importance: list[float]
    """By how much the metric worsens when the feature's values are shuffled."""
    noise: float
    """The most that a column of noise seemed to matter."""


def mutual_information(fold: Fold) -> list[float]:
    """Give each feature's mutual information with the label, in nats, on the fold's training side.

    Estimated by nearest neighbours (scikit-learn; Ross, "Mutual information between discrete and
    continuous data sets", 2014).
    """
    from sklearn.feature_selection import mutual_info_classif, mutual_info_regression

    (features,) = _filled(fold.feature_names, fold.train.features)
    estimate = mutual_info_classif if fold.task == "binary" else mutual_info_regression
    # The estimate for continuous values takes ties for closeness; flags and codes have many.
    features = features.astype(np.float64)
    is_discrete = []
    for column in features.T:
        values, codes = np.unique(column, return_inverse=True)
        is_discrete.append(len(values) <= _MAX_DISCRETE)
        if is_discrete[-1]:
            column[:] = codes
    found = estimate(
        features,
        fold.train.labels,
        discrete_features=is_discrete,
        random_state=fold.seed,
        n_jobs=1,
    )
    # A column of one value tells nothing; the estimator adds noise to it and may say a little.
    told: list[float] = np.where(np.ptp(features, axis=0) > 0, found, 0.0).tolist()
    return told


def permutation_importance(fold: Fold, measure: Measure) -> FoldImportance:
    """Fit boosted trees on the training side; shuffle one feature after the other on the test side.

    Args:
        fold: the sides; the redundant features are left out already.
        measure: see `Measure`.
    """
    from sklearn.inspection import permutation_importance as permuted

    train, test = (
        np.hstack([side, noise])
        for side, noise in zip(_both_sides(fold), _noise(fold), strict=True)
    )
    trees = _fitted(fold, train)
    found = permuted(
        trees,
        test,
        fold.test.labels,
        scoring=lambda fitted, features, _labels: _score(fold, fitted, features, measure),
        n_repeats=_NUM_REPEATS,
        random_state=fold.seed,
        n_jobs=1,
    )
    means = found.importances_mean
    return FoldImportance(
        importance=means[:-NUM_NOISE].tolist(),
        noise=float(means[-NUM_NOISE:].max()),
    )


def added_value(
    fold: Fold, standing: Sequence[int], added: Sequence[int], measure: Measure
) -> FoldAddition:
    """Give by how much the metric improves when one feature more joins those that stand.

    Two features that order rows alike may tell by their difference what neither tells alone.
    """
    train, test = _both_sides(fold)
    noise = _noise(fold)

    def score(*more: list[Array]) -> float:
        sides = [
            np.hstack([side[:, list(standing)], *(each[number] for each in more)])
            for number, side in enumerate((train, test))
        ]
        return _score(fold, _fitted(fold, sides[0]), sides[1], measure)

    alone = score()
    return FoldAddition(
        gains=[score([train[:, [place]], test[:, [place]]]) - alone for place in added],
        noise=max(
            score([side[:, [column]] for side in noise]) - alone for column in range(NUM_NOISE)
        ),
    )


def score_alone(fold: Fold, measure: Measure) -> float:
    """Give the metric of trees on the fold's features; with none at all, of one guess for all."""
    if not fold.feature_names:
        guess = float(fold.train.labels.mean())
        return measure(fold.test, np.full(fold.test.num_rows, guess))
    train, test = _both_sides(fold)
    return _score(fold, _fitted(fold, train), test, measure)


def _both_sides(fold: Fold) -> list[Array]:
    return _filled(fold.feature_names, fold.train.features, fold.test.features)


def _noise(fold: Fold) -> list[Array]:
    draw = np.random.default_rng(fold.seed)
    return [
        draw.normal(size=(side.num_rows, NUM_NOISE)).astype(np.float32)
        for side in (fold.train, fold.test)
    ]


def _fitted(fold: Fold, features: Array) -> Any:
    from xgboost import XGBClassifier, XGBRegressor

    kind = XGBClassifier if fold.task == "binary" else XGBRegressor
    return kind(n_estimators=100, random_state=fold.seed, n_jobs=1).fit(features, fold.train.labels)


def _score(fold: Fold, trees: Any, features: Array, measure: Measure) -> float:
    if fold.task == "binary":
        return measure(fold.test, trees.predict_proba(features)[:, 1].astype(np.float64))
    return measure(fold.test, trees.predict(features).astype(np.float64))


def rank_correlations(features: Array, feature_names: tuple[str, ...]) -> Array:
    """Give Spearman's rank correlation of every two features, [F, F]; 0 where one is constant.

    Ranks are those of the filled values, ties at their mean.
    """
    (filled,) = _filled(feature_names, features)
    ranks = np.column_stack(
        [pl.Series(column).rank(method="average").to_numpy() for column in filled.T]
    )
    centred = ranks - ranks.mean(axis=0)
    lengths = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(lengths > 0, lengths, 1.0)
    return np.asarray(scaled.T @ scaled)


def sample(side: Examples, max_rows: int, seed: int) -> Examples:
    """Draw rows of a side without replacement, in their order; all of them where they are few."""
    if side.num_rows <= max_rows:
        return side
    draw = np.random.default_rng(seed)
    rows = np.sort(draw.choice(side.num_rows, max_rows, replace=False))
    return Examples(features=side.features[rows], labels=side.labels[rows], frame=side.frame[rows])


def keep(fold: Fold, kept: Sequence[int]) -> Fold:
    """Take some of the features, by their places."""
    places = list(kept)
    train, test = (replace(s, features=s.features[:, places]) for s in (fold.train, fold.test))
    names = tuple(fold.feature_names[place] for place in places)
    return replace(fold, train=train, test=test, feature_names=names)


def _filled(feature_names: tuple[str, ...], train: Array, *others: Array) -> list[Array]:
    """The sides as an estimator would meet them; what no training row has becomes a constant."""
    is_absent = np.isnan(train).all(axis=0)
    sides = [np.where(is_absent, 0.0, side) for side in (train, *others)]
    scaling = preprocessing.fit(sides[0], feature_names=feature_names)
    return [scaling.apply(side) for side in sides]
