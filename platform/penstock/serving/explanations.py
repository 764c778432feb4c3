"""What is said of a score: each feature's part in it, as numbers and in plain words. Pure."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from penstock.errors import NotFoundError

MAX_ROWS = 16
"""Of one request: an explanation takes as long as hundreds of thousands of scores."""
_NUM_NAMED = 3
_NAMED_SHARE = 0.05
"""A feature is named in words where it has this part of all that moved the score, at least."""
_VALUE_DIGITS = 4


@dataclass(frozen=True, kw_only=True)
class Attribution:
    """How one row's score comes about: `base_score` and all contributions add up to `score`."""

    score: float
    base_score: float
    """The mean score of the background rows."""
    contributions: Sequence[float]
    """[F], in the units of the score: Shapley values."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One feature's part in a score."""

    feature: str
    value: float | None
    """As it was looked up; None: missing."""
    contribution: float
    usual: tuple[float, float] | None
    """Where 90 % of the training rows lie; None: it was never there."""


def explanation(
    attribution: Attribution,
    *,
    feature_names: Sequence[str],
    values: Sequence[float],
    usual: Sequence[tuple[float, float] | None],
) -> dict[str, Any]:
    """Write one row's explanation, the features that matter most first.

    Args:
        attribution: the numbers.
        feature_names: [F]
        values: [F], as they were looked up; NaN is missing.
        usual: [F], see `Part`.
    """
    parts = [
        Part(
            feature=name,
            value=value if np.isfinite(value) else None,
            contribution=contribution,
            usual=range_,
        )
        for name, value, contribution, range_ in zip(
            feature_names, values, attribution.contributions, usual, strict=True
        )
    ]
    # Of equals the first one stays first.
    parts.sort(key=lambda part: -abs(part.contribution))
    return {
        "score": attribution.score,
        "base_score": attribution.base_score,
        "contributions": [
            {"feature": part.feature, "value": part.value, "contribution": part.contribution}
            for part in parts
        ],
        "missing": [
            name for name, value in zip(feature_names, values, strict=True) if np.isnan(value)
        ],
        "text": words(attribution, parts),
    }


def words(attribution: Attribution, parts: Sequence[Part]) -> str:
    """Say in plain words what a score comes from.

    Args:
        attribution: the score, and what it is on average.
        parts: the features, those that matter most first.
    """
    score, base_score = number(attribution.score), number(attribution.base_score)
    said = [f"Score {score}, against {base_score} on average."]
    moved = sum(abs(part.contribution) for part in parts)
    if moved == 0:
        said.append("No feature moves it.")
    else:
        named = [
            part for part in parts[:_NUM_NAMED] if abs(part.contribution) >= _NAMED_SHARE * moved
        ]
        raising = [part for part in named if part.contribution > 0]
        lowering = [part for part in named if part.contribution < 0]
        # What leads comes first.
        for some in sorted((raising, lowering), key=lambda some: some[:1] != named[:1]):
            if some:
                does = "Raises" if some is raising else "Lowers"
                said.append(f"{does} it: {'; '.join(_part_in_words(part) for part in some)}.")
        rest = [part for part in parts if part not in named]
        if rest:
            total = number(sum(part.contribution for part in rest), signed=True)
            others = "feature" if len(rest) == 1 else f"{len(rest)} features together"
            said.append(f"The other {others}: {total}.")
    absent = [part.feature for part in parts if part.value is None]
    if absent:
        said.append(f"Missing: {', '.join(sorted(absent))}.")
    return " ".join(said)


def _part_in_words(part: Part) -> str:
    usual = ""
    if part.usual is not None and part.value is not None:
        low, high = (value_in_words(bound) for bound in part.usual)
        usual = f", usually {low}" if low == high else f", usually {low} to {high}"
    contribution = number(part.contribution, signed=True)
    return f"{part.feature} is {value_in_words(part.value)}{usual} ({contribution})"


def number(value: float, *, digits: int = 3, signed: bool = False) -> str:
    """Write a number for people: so many digits that count, and never fewer than the whole ones."""
    sign = "+" if signed and value > 0 else ""
    if abs(value) >= 10**digits:
        return f"{sign}{value:,.0f}"
    return sign + np.format_float_positional(
        value, precision=digits, unique=False, fractional=False, trim="-"
    )


def value_in_words(value: float | None) -> str:
    """Write a feature's value."""
    return "missing" if value is None else number(value, digits=_VALUE_DIGITS)


def no_explanations(model: str, version: int) -> NotFoundError:
    """Build the error for a version that was not trained for this."""
    return NotFoundError(
        f"version {version} of {model} gives no explanations",
        next_step="declare serving=ServingPolicy(explanations=True), and train it again",
    )


def answer(
    model: str, version: int, explained: Sequence[dict[str, Any]], *, is_exact: bool
) -> dict[str, Any]:
    """Put explanations into the document that callers get."""
    return {
        "model": model,
        "version": version,
        "is_exact": is_exact,
        "explanations": list(explained),
    }
