"""The gate: a pure look at two models' metrics that says who may be champion, and why."""

import math
from collections.abc import Iterator, Mapping

from penstock.records import Record
from penstock.training.declarations import GatePolicy, LeakAlarm

# Two decimals' difference of 0.01 is 0.00999… in floating point; that is no reason to refuse.
_ROUNDING = 1e-12


class GateEvidence(Record):
    """One rule, what it looked at, and whether it held."""

    rule: str
    metric: str
    challenger: float | None
    champion: float | None = None
    limit: float | None = None
    passed: bool
    finding: str


class GateDecision(Record):
    """What the gate says, in one sentence, with the evidence for each rule."""

    passed: bool
    reason: str
    evidence: tuple[GateEvidence, ...]


def decide(
    champion: Mapping[str, float] | None,
    challenger: Mapping[str, float],
    policy: GatePolicy,
    *,
    higher_is_better: bool,
    leak_alarm: LeakAlarm | None = None,
) -> GateDecision:
    """Say whether the challenger may take the champion's place.

    Args:
        champion: the champion's metrics; None: the model has no champion yet.
        challenger: the challenger's metrics.
        policy: which metric counts, by how much, and which bounds must be kept.
        higher_is_better: which way that metric points.
        leak_alarm: a metric beyond it is too good to be true, whatever else holds.

    A metric that is absent or not finite never passes a rule.
    """
    evidence = tuple(_look(champion, challenger, policy, higher_is_better, leak_alarm))
    failed = [item.finding for item in evidence if not item.passed]
    reason = "; ".join(failed) if failed else "; ".join(item.finding for item in evidence)
    return GateDecision(passed=not failed, reason=reason, evidence=evidence)


def _look(
    champion: Mapping[str, float] | None,
    challenger: Mapping[str, float],
    policy: GatePolicy,
    higher_is_better: bool,
    leak_alarm: LeakAlarm | None,
) -> Iterator[GateEvidence]:
    if leak_alarm is not None:
        value = _finite(challenger, leak_alarm.metric)
        words, plausible = leak_alarm.bound
        passed = value is not None and leak_alarm.is_plausible(value)
        yield GateEvidence(
            rule="leak_alarm",
            metric=leak_alarm.metric,
            challenger=value,
            limit=plausible,
            passed=passed,
            finding=f"{leak_alarm.metric} {_shown(value)} is "
            + ("plausible" if passed else "not plausible")
            + f": without a leak it is {words} {plausible:g}",
        )
    for bound in policy.bounds:
        value = _finite(challenger, bound.metric)
        for limit, holds, words in (
            (bound.at_least, value is not None and value >= (bound.at_least or 0.0), "at least"),
            (bound.at_most, value is not None and value <= (bound.at_most or 0.0), "at most"),
        ):
            if limit is not None:
                yield GateEvidence(
                    rule="bound",
                    metric=bound.metric,
                    challenger=value,
                    limit=limit,
                    passed=holds,
                    finding=f"{bound.metric} {_shown(value)} "
                    + ("keeps" if holds else "breaks")
                    + f" the bound: {words} {limit:g}",
                )
    yield _gain(champion, challenger, policy, higher_is_better)


def _gain(
    champion: Mapping[str, float] | None,
    challenger: Mapping[str, float],
    policy: GatePolicy,
    higher_is_better: bool,
) -> GateEvidence:
    new = _finite(challenger, policy.metric)
    if champion is None:
        finding = f"{policy.metric} is {_shown(new)}, and there is no champion to beat"
        return GateEvidence(
            rule="gain",
            metric=policy.metric,
            challenger=new,
            passed=new is not None,
            finding=finding,
        )
    old = _finite(champion, policy.metric)
    if new is None or old is None:
        passed, gained = False, "so there is no comparing them"
    else:
        gain = new - old if higher_is_better else old - new
        passed = gain >= policy.min_gain - _ROUNDING
        gained = f"a gain of {gain:+.4g} where {policy.min_gain:+.4g} is asked"
    return GateEvidence(
        rule="gain",
        metric=policy.metric,
        challenger=new,
        champion=old,
        limit=policy.min_gain,
        passed=passed,
        finding=f"{policy.metric} is {_shown(new)}, the champion's {_shown(old)}, {gained}",
    )


def _finite(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name)
    return value if value is not None and math.isfinite(value) else None


def _shown(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.4f}"
