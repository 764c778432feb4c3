"""Which trials are given up before they have seen every fold: pure rules over what is recorded."""

from collections.abc import Sequence
from statistics import median
from typing import Literal

from penstock.training.search.ledger import Trial

Rule = Literal["asha", "median", "none"]
_KEPT_OF = 2
_FEWEST_FOR_A_MEDIAN = 4


def should_stop(
    rule: Rule,
    trial: Trial,
    trials: Sequence[Trial],
    *,
    folds: Sequence[int],
    metric: str,
    higher_is_better: bool,
) -> str | None:
    """Say why the trial is given up, or None: it goes on.

    Every trial visits the folds in the same order, so what two of them reached on the first ones
    compares.

    Args:
        rule: `asha`: of the trials that came to the first, second, fourth … fold, only the better
            half goes on (Li et al., "A System for Massively Parallel Hyperparameter Tuning", 2020,
            with folds as the resource); `median`: who is worse than the median of those that came
            as far is given up; `none`: nobody is.
        trial: which has just been measured.
        trials: all of the search.
        folds: in the order in which each trial visits them.
        metric: what is compared.
        higher_is_better: which way it points.
    """
    num_done = len(trial.folds)
    if rule == "none" or num_done >= len(folds):
        return None
    if rule == "asha" and num_done & (num_done - 1):
        return None
    seen = folds[:num_done]
    sign = 1 if higher_is_better else -1
    own = trial.value(metric, seen)
    if own is None:
        return None
    others = [
        sign * value
        for other in trials
        if other is not trial and (value := other.value(metric, seen)) is not None
    ]
    where = f"after {num_done} of {len(folds)} folds"
    if rule == "median":
        if len(others) < _FEWEST_FOR_A_MEDIAN or sign * own >= median(others):
            return None
        return f"below the median {where}"
    kept = max((len(others) + 1) // _KEPT_OF, 1)
    num_better = sum(value > sign * own for value in others)
    return None if num_better < kept else f"not among the best {kept} {where}"
