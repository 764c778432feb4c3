"""Whether a model's ONNX graph answers as its native weights do, on real rows."""

import numpy as np
import numpy.typing as npt

from penstock.errors import GateRefusedError
from penstock.records import Record
from penstock.scorer import Scorer, load_scorer

TOLERANCE = 1e-5
"""Relative to the score, or to what is usual for the model, where these are above 1: a graph
counts in float32, with seven digits."""
_USUAL = 0.99
MAX_ROWS = 10_000
# Online rows may lack features that no training row lacks; both sides must fill them alike.
_MISSING_SHARE = 0.2
_MAX_ROWS_WITH_MISSING = 1_000


class Agreement(Record):
    """How far the two went apart, at most, and on how many rows."""

    num_rows: int
    num_rows_with_blanks: int
    max_abs_difference: float
    tolerance: float


def check_agreement(
    native: Scorer, graph: bytes, features: npt.NDArray[np.float64], *, seed: int = 0
) -> Agreement:
    """Score the same rows by both, and some of them again with random blanks.

    Args:
        native: the native weights' scorer, rebuilt from the bundle.
        graph: the bytes of the ONNX graph.
        features: float64 [n, F], n > 0, NaN for missing.
        seed: of the choice of the blanks.

    Raises:
        GateRefusedError: a score differs by more than the tolerance, or is not finite.
    """
    if not len(features):
        raise GateRefusedError(
            "there is no row to compare the graph with the native weights on",
            next_step="train on a training set that has rows",
        )
    draw = np.random.default_rng(seed)
    blanked = features[:_MAX_ROWS_WITH_MISSING].copy()
    blanked[draw.random(blanked.shape) < _MISSING_SHARE] = np.nan
    rows = np.concatenate([features, blanked])
    ours = load_scorer(graph)(rows)
    theirs = np.asarray(native(rows), dtype=np.float64).reshape(len(rows))
    difference = np.abs(ours - theirs)
    is_finite = np.isfinite(theirs)
    sizes = np.abs(np.where(is_finite, theirs, 0.0))
    usual = max(1.0, float(np.quantile(sizes, _USUAL)))
    tolerance = TOLERANCE * usual
    # NaN compares false with everything: ask for what must hold, not for what must not.
    agree = is_finite & (difference <= TOLERANCE * np.maximum(sizes, usual))
    if not agree.all():
        worst = int(np.argmin(agree)) if np.isnan(difference).any() else int(difference.argmax())
        raise GateRefusedError(
            f"the ONNX graph and the native weights disagree on {int((~agree).sum())} of "
            f"{len(rows)} rows: row {worst} scores {ours[worst]!r} and {theirs[worst]!r}",
            allowed=f"a difference of at most {tolerance:g}",
            next_step="the export is at fault: report the estimator, or choose another one",
        )
    return Agreement(
        num_rows=len(features),
        num_rows_with_blanks=len(blanked),
        max_abs_difference=float(difference.max()),
        tolerance=tolerance,
    )
