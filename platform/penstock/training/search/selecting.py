"""Chooses an ensemble on scores of rows that no member was fitted on."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

Scores = npt.NDArray[np.float32]
_MAX_ROUNDS = 12
_MIN_GAIN = 1e-6


def choose_members(
    candidates: Mapping[int, Sequence[Scores]],
    measure: Callable[[int, npt.NDArray[np.float64]], float],
    *,
    max_rounds: int = _MAX_ROUNDS,
) -> tuple[dict[int, int], float]:
    """Add, again and again, the candidate whose addition makes the mean of scores best.

    A candidate may be added more than once, which is its weight (Caruana, Niculescu-Mizil, Crew,
    Ksikes, "Ensemble selection from libraries of models", ICML 2004). It ends where no addition
    makes it better.

    Args:
        candidates: by name, the scores of each fold's test rows.
        measure: gives how good scores of a fold are; higher is better.
        max_rounds: how many additions at most.

    Returns:
        How often each chosen candidate was taken, and the measure's mean over the folds.
    """
    taken: Counter[int] = Counter()
    num_folds = len(next(iter(candidates.values())))
    sums = [np.zeros(len(fold)) for fold in next(iter(candidates.values()))]
    reached = -np.inf
    for size in range(1, max_rounds + 1):
        values = {
            name: float(
                np.mean([measure(f, (sums[f] + scores[f]) / size) for f in range(num_folds)])
            )
            for name, scores in candidates.items()
        }
        best = max(values, key=lambda name: (values[name], -name))
        if values[best] <= reached + _MIN_GAIN:
            break
        reached = values[best]
        taken[best] += 1
        for fold, scores in enumerate(candidates[best]):
            sums[fold] += scores
    return dict(taken), reached
