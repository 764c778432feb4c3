"""Which of two means is higher, asked as often as one likes: always-valid p-values and intervals.

A fixed-n test that is looked at again and again finds a difference where there is none, sooner or
later. The mixture sequential probability ratio test weighs the hypothesis of no difference against
a normal mixture of differences. Its likelihood ratio is a martingale where there is none, so it
passes 1/alpha at any moment whatever with a probability of alpha at most (Ville's inequality):

    log ratio = -log(1 + tau^2/V) / 2 + tau^2 d^2 / (2 V (V + tau^2))
    |difference - d| <= sqrt(2 V (V + tau^2) / tau^2 * (log(1/alpha) + log(1 + tau^2/V) / 2))

with d the difference found, V its variance and tau the mixture's scale. After Johari, Koomen,
Pekelis and Walsh, "Always Valid Inference" (Operations Research 70(3), 2022), equations 8 and 9;
that the normal form holds for means of any distribution, once there are enough of them, is
Waudby-Smith, Arbour, Sinha, Kennedy and Ramdas, "Time-uniform central limit theory and asymptotic
confidence sequences" (Annals of Statistics 52(6), 2024).

The units must be independent: what is randomised, here the values that requests are split by, and
not single predictions. Pure: numbers in, numbers out.
"""

import math

from pydantic import Field

from penstock.records import Record

MIN_UNITS = 100
"""Of each arm; means of fewer are too far from normal for anything to be said."""
_MIXTURE_DEVIATIONS = 0.1
"""The mixture's scale in standard deviations of an outcome: differences about as large are found
soonest, others hardly later, since the ratio depends on it by a logarithm."""
_FACTOR_BEYOND_HOPE = 1e6
_ROUNDING = 1e-12
"""What varies by less, of its own size, varies in the last bits only."""


class ArmMoments(Record):
    """What came out in one arm: the mean and the variance of its units' means."""

    num_units: int = Field(default=0, ge=0)
    num_outcomes: int = Field(default=0, ge=0)
    mean: float = 0.0
    """Of the units' means; 0 without any."""
    variance: float = Field(default=0.0, ge=0)
    """Of the units' means, divided by one less than their number."""
    outcome_variance: float = Field(default=0.0, ge=0)
    """Of single outcomes."""


class Comparison(Record):
    """How two arms differ, as far as anybody can say by now."""

    difference: float
    """Of the means, new minus old."""
    low: float
    high: float
    """Of the interval: it holds the true difference at every look, together, with 1 - alpha."""
    p_value: float
    """At most alpha at any look with a probability of alpha, where there is no difference."""
    factor_missing: float | None
    """So many times as many units would decide, did the difference stay; 1: it is decided now.
    None: more than anybody will wait for."""


def compare(new: ArmMoments, old: ArmMoments, *, alpha: float) -> Comparison | None:
    """Compare two arms; None: an arm has fewer than `MIN_UNITS`, or nothing ever varied.

    Args:
        new: the outcomes of the one.
        old: the outcomes of the other.
        alpha: how often a difference may be found where there is none, above 0 and below 1.
    """
    if min(new.num_units, old.num_units) < MIN_UNITS:
        return None
    variance = _variance(new, old)
    difference = new.mean - old.mean
    # Of single outcomes, not of the units' means: those vary less as each unit has more of them,
    # and the mixture must not move while it is looked at.
    scale = _MIXTURE_DEVIATIONS**2 * _of_both(
        new.num_outcomes,
        new.outcome_variance,
        old.num_outcomes,
        old.outcome_variance,
        distance=difference,
    )
    rounding = (_ROUNDING * max(abs(new.mean), abs(old.mean))) ** 2
    if variance <= rounding or scale <= rounding:
        return None
    radius = _radius(variance, scale, alpha)
    log_ratio = -math.log1p(scale / variance) / 2
    log_ratio += scale * difference**2 / (2 * variance * (variance + scale))
    return Comparison(
        difference=difference,
        low=difference - radius,
        high=difference + radius,
        p_value=math.exp(-max(log_ratio, 0.0)),
        factor_missing=_factor_missing(difference, variance, scale, alpha),
    )


def _variance(new: ArmMoments, old: ArmMoments) -> float:
    """Of the difference: the larger one of what each arm says itself and what both say together.

    An arm of few units where a rare outcome never came has a variance of 0 by its own word, and
    would make the difference to a large arm look certain.
    """
    apart = new.variance / new.num_units + old.variance / old.num_units
    of_both = _of_both(
        new.num_units, new.variance, old.num_units, old.variance, distance=new.mean - old.mean
    )
    return max(apart, of_both * (1 / new.num_units + 1 / old.num_units))


def _of_both(m: int, variance_m: float, n: int, variance_n: float, *, distance: float) -> float:
    """Give the variance of two samples thrown together; `distance` is that of their means."""
    squares = (m - 1) * variance_m + (n - 1) * variance_n + distance**2 * m * n / (m + n)
    return squares / (m + n - 1)


def _radius(variance: float, scale: float, alpha: float) -> float:
    log_odds = -math.log(alpha) + math.log1p(scale / variance) / 2
    return math.sqrt(2 * variance * (variance + scale) / scale * log_odds)


def _factor_missing(difference: float, variance: float, scale: float, alpha: float) -> float | None:
    """So many times the units make the interval as narrow as the difference is wide."""

    def decides(factor: float) -> bool:
        return _radius(variance / factor, scale, alpha) <= abs(difference)

    if decides(1.0):
        return 1.0
    low, high = 1.0, _FACTOR_BEYOND_HOPE
    if not decides(high):
        return None
    # The radius shrinks with every unit, so halving finds the one place.
    while high / low > 1.01:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if decides(middle) else (middle, high)
    return high
