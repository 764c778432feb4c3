"""The rule by which features are ranked and kept: pure functions of what the folds measured.

Of two features with a rank correlation above 0.95, the one with less mutual information stays only
where adding it to those that stand helps more than adding noise. Of what stays, a feature is kept
where its permutation importance is above that of noise. Both in at least four folds of five.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from penstock.records import Record
from penstock.training.importance import Array, FoldAddition, FoldImportance

MAX_CORRELATION = 0.95
_SHARE_OF_FOLDS = 0.8


class Interval(Record):
    """A number over the folds."""

    mean: float
    low: float
    """Of the fold where it was smallest."""
    high: float
    """Of the fold where it was largest."""


class RankedFeature(Record):
    """What the folds say of one feature."""

    name: str
    mutual_information: Interval
    """In nats."""
    importance: Interval | None
    """By how much the metric worsens when it is shuffled; None: redundant, so never measured."""
    gain: Interval | None
    """By how much the metric improves when it joins those that stand, for one that is alike to
    one of them."""
    num_folds_above_noise: int
    """Of its importance, or of its gain where it is redundant."""
    redundant_with: str | None
    is_kept: bool


class RedundantPair(Record):
    """Two features that order rows alike."""

    first: str
    second: str
    rank_correlation: float


def find_twins(correlations: Array, information: Array) -> dict[int, int]:
    """Give, for each feature that another one stands for, the place of that other one.

    Features are taken in order of falling mutual information; each stands unless one that already
    stands orders rows as it does.
    """
    twins: dict[int, int] = {}
    standing: list[int] = []
    # Stable: of equals the one that the service names first stands.
    for place in np.argsort(-information, kind="stable").tolist():
        alike = [other for other in standing if abs(correlations[place, other]) > MAX_CORRELATION]
        if alike:
            twins[place] = max(alike, key=lambda other: abs(correlations[place, other]))
        else:
            standing.append(place)
    return twins


def needed_twins(twins: Sequence[int], found: Sequence[FoldAddition]) -> list[int]:
    """Give the twins that add more than noise in enough folds, though they are alike to others."""
    above = _folds_above(found, len(twins))
    return [t for t, folds in zip(twins, above, strict=True) if folds >= folds_needed(len(found))]


def _folds_above(found: Sequence[FoldAddition], num: int) -> list[int]:
    return [sum(fold.gains[at] > fold.noise for fold in found) for at in range(num)]


def rank(
    names: Sequence[str],
    information: Sequence[Sequence[float]],
    standing: Sequence[int],
    found: Sequence[FoldImportance],
    twins: Mapping[int, int],
    additions: Sequence[FoldAddition],
    top: int | None,
) -> list[RankedFeature]:
    """Order the features and mark those that the rule keeps.

    Args:
        names: of all features.
        information: [folds][features], in nats.
        standing: the places of the features whose importance was measured.
        found: what each fold says of them, importances in the order of `standing`.
        twins: see `find_twins`.
        additions: what each fold says of the twins, in their order; empty where there are none.
        top: keep at most so many.
    """
    told = [interval([fold[place] for fold in information]) for place in range(len(names))]
    gains = {
        place: interval([fold.gains[at] for fold in additions]) for at, place in enumerate(twins)
    }
    measured = []
    for column, place in enumerate(standing):
        over_folds = [each.importance[column] for each in found]
        above = sum(each.importance[column] > each.noise for each in found)
        measured.append((interval(over_folds), above, place))
    measured.sort(key=lambda entry: (-entry[0].mean, entry[2]))
    ranked: list[RankedFeature] = []
    for importance, above, place in measured:
        has_room = top is None or sum(feature.is_kept for feature in ranked) < top
        ranked.append(
            RankedFeature(
                name=names[place],
                mutual_information=told[place],
                importance=importance,
                gain=gains.get(place),
                num_folds_above_noise=above,
                redundant_with=None,
                is_kept=has_room and above >= folds_needed(len(found)),
            )
        )
    above_noise = dict(zip(twins, _folds_above(additions, len(twins)), strict=True))
    last = [
        RankedFeature(
            name=names[place],
            mutual_information=told[place],
            importance=None,
            gain=gains[place],
            num_folds_above_noise=above_noise[place],
            redundant_with=names[other],
            is_kept=False,
        )
        for place, other in twins.items()
        if place not in standing
    ]
    return ranked + sorted(last, key=lambda feature: -feature.mutual_information.mean)


def folds_needed(num_folds: int) -> int:
    """In how many folds a feature has to matter more than noise."""
    return math.ceil(_SHARE_OF_FOLDS * num_folds)


def interval(values: Sequence[float]) -> Interval:
    """Mean, smallest and largest."""
    return Interval(mean=float(np.mean(values)), low=min(values), high=max(values))


def rule(num_folds: int, top: int | None) -> str:
    """Say the rule in one sentence."""
    return (
        f"Kept: what matters more than noise in {folds_needed(num_folds)} of {num_folds} folds; of "
        f"features with a rank correlation above {MAX_CORRELATION} the one with less mutual "
        "information stays only where it adds more than noise in as many"
        + ("." if top is None else f"; the first {top} of these.")
    )


def redundant_pairs(correlations: Array, names: Sequence[str]) -> list[RedundantPair]:
    """Name the pairs that are too much alike, the most alike first."""
    found = [
        RedundantPair(
            first=names[i], second=names[j], rank_correlation=round(float(correlations[i, j]), 4)
        )
        for i in range(len(names))
        for j in range(i + 1, len(names))
        if abs(correlations[i, j]) > MAX_CORRELATION
    ]
    return sorted(found, key=lambda pair: -abs(pair.rank_correlation))
