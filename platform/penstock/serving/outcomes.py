"""What an A/B rollout compares two versions by: a number for each prediction whose truth is known.

Pure: polars frames in, moments out.
"""

from collections.abc import Callable, Mapping
from typing import Literal

import polars as pl

from penstock.errors import UserError, unknown_name
from penstock.records import Record
from penstock.serving.sequential import ArmMoments

OutcomeName = Literal[
    "log_loss", "brier", "accuracy", "absolute_error", "squared_error", "truth", "less_truth"
]
_CLIP = 1e-6
"""A score of 0 or 1 that is wrong costs 13.8, and not infinitely much."""
_SCORE, _TRUTH, _THRESHOLD = pl.col("score"), pl.col("truth"), pl.col("threshold")


class Outcome(Record):
    """A kind of outcome."""

    words: str
    is_more_better: bool
    task: Literal["binary", "number"] | None
    """What the truth must be; None: either."""


OUTCOMES: dict[OutcomeName, Outcome] = {
    "log_loss": Outcome(
        words="the log loss of the score", is_more_better=False, task="binary"
    ),
    "brier": Outcome(
        words="the squared distance of score and truth", is_more_better=False, task="binary"
    ),
    "accuracy": Outcome(
        words="1 where the version's label is the truth", is_more_better=True, task="binary"
    ),
    "absolute_error": Outcome(
        words="the distance of score and truth", is_more_better=False, task="number"
    ),
    "squared_error": Outcome(
        words="its square", is_more_better=False, task="number"
    ),
    "truth": Outcome(
        words="the truth itself, of which more is better", is_more_better=True, task=None
    ),
    "less_truth": Outcome(
        words="the truth itself, of which less is better", is_more_better=False, task=None
    ),
}  # fmt: skip


def _log_loss() -> pl.Expr:
    score = _SCORE.clip(_CLIP, 1 - _CLIP)
    return -(_TRUTH * score.log() + (1 - _TRUTH) * (1 - score).log())


_EXPRESSIONS: Mapping[OutcomeName, Callable[[], pl.Expr]] = {
    "log_loss": _log_loss,
    "brier": lambda: (_SCORE - _TRUTH) ** 2,
    "accuracy": lambda: ((_SCORE >= _THRESHOLD) == (_TRUTH == 1)).cast(pl.Float64),
    "absolute_error": lambda: (_SCORE - _TRUTH).abs(),
    "squared_error": lambda: (_SCORE - _TRUTH) ** 2,
    "truth": lambda: _TRUTH,
    "less_truth": lambda: _TRUTH,
}


def check_outcome(
    name: str, *, is_binary: bool, thresholds: Mapping[int, float | None]
) -> OutcomeName:
    """Hold an outcome to what the model's truth is and to what its versions give.

    Args:
        name: as it was asked for.
        is_binary: the truth is 0 or 1; else any number.
        thresholds: of both versions; None: it gives no label.

    Raises:
        UserError: there is no such outcome, or not of this model.
    """
    task = "binary" if is_binary else "number"
    allowed = [each for each, kind in OUTCOMES.items() if kind.task in (None, task)]
    known = next((each for each in OUTCOMES if each == name), None)
    if known is None:
        raise unknown_name("outcome", name, allowed)
    if known not in allowed:
        truth = "0 or 1" if is_binary else "any number"
        raise UserError(
            f"the outcome {known} is none of this model's: its truth is {truth}",
            allowed=", ".join(allowed),
        )
    without = [str(version) for version, limit in thresholds.items() if limit is None]
    if known == "accuracy" and without:
        raise UserError(
            f"accuracy needs labels, and version {without[0]} has no threshold",
            allowed=", ".join(each for each in allowed if each != "accuracy"),
        )
    return known


def moments(
    rows: pl.DataFrame, outcome: OutcomeName, thresholds: Mapping[int, float | None]
) -> tuple[ArmMoments, ArmMoments]:
    """Give the moments of the new version's arm and of the old one's.

    Each unit counts once, by the mean of its outcomes, however many predictions it has: units were
    drawn, predictions were not, and those of one unit resemble each other.

    Args:
        rows: is_new (the arm), unit, model_version (who answered), score and truth (no null).
        outcome: which.
        thresholds: of the versions, where accuracy is asked for.
    """
    limits = {version: limit for version, limit in thresholds.items() if limit is not None}
    threshold = pl.col("model_version").replace_strict(
        limits or {0: 0.0}, default=None, return_dtype=pl.Float64
    )
    known = rows.with_columns(threshold.alias("threshold")).select(
        "is_new", "unit", _EXPRESSIONS[outcome]().alias("outcome")
    )
    units = known.group_by("is_new", "unit").agg(pl.col("outcome").mean())
    return _of_arm(known, units, is_new=True), _of_arm(known, units, is_new=False)


def _of_arm(known: pl.DataFrame, units: pl.DataFrame, *, is_new: bool) -> ArmMoments:
    one = pl.col("is_new") == is_new
    # In one order, so that the last bit is the same at every look.
    means = units.filter(one)["outcome"].sort()
    single = known.filter(one)["outcome"].sort()

    def variance(values: pl.Series) -> float:
        found = values.var()
        return float(found) if isinstance(found, float) else 0.0

    return ArmMoments(
        num_units=len(means),
        num_outcomes=len(single),
        mean=float(means.mean() or 0.0) if len(means) else 0.0,  # type: ignore[arg-type]
        variance=variance(means),
        outcome_variance=variance(single),
    )
