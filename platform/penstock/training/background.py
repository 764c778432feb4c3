"""Draws the training rows that a model's scores are explained against."""

import numpy as np
import numpy.typing as npt

from penstock.handover import Background

_MAX_ROWS = 100
_MIN_ROWS = 20
_MAX_VALUES = 12_000
"""Of all rows together: an explanation lays each of them out some two thousand times."""
_ROWS_FOR_USUAL = 10_000
_USUAL = (0.05, 0.95)
_SEED = 0


def draw_background(
    features: npt.NDArray[np.float64], *, feature_names: tuple[str, ...]
) -> Background:
    """Draw rows at random, the same ones each time, and say where most of the values lie.

    Args:
        features: [n, F], of the training rows, as they come; NaN is missing.
        feature_names: [F]
    """
    draw = np.random.default_rng(_SEED)
    num_rows = len(features)
    some = features[np.sort(draw.choice(num_rows, min(num_rows, _ROWS_FOR_USUAL), replace=False))]
    wanted = min(_MAX_ROWS, max(_MIN_ROWS, _MAX_VALUES // len(feature_names)))
    rows = some[np.sort(draw.choice(len(some), min(len(some), wanted), replace=False))]
    return Background(
        feature_names=feature_names,
        rows=tuple(
            tuple(value if np.isfinite(value) else None for value in row) for row in rows.tolist()
        ),
        usual=tuple(_usual(column) for column in some.T),
    )


def _usual(column: npt.NDArray[np.float64]) -> tuple[float, float] | None:
    known = column[np.isfinite(column)]
    if not len(known):
        return None
    low, high = np.quantile(known, _USUAL).tolist()
    return low, high
