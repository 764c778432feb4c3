"""How an A/B rollout ends: by its evidence, by a guard, or undecided. Pure."""

import math
from typing import Self

from penstock.durations import as_duration
from penstock.records import Record
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.outcomes import OUTCOMES, OutcomeName
from penstock.serving.rollout import Decision, RolloutPlan, why_back
from penstock.serving.sequential import MIN_UNITS, ArmMoments, Comparison, compare

_FIRST_WAIT_S = 30.0
_SHARE_OF_TIME = 0.01
_LOOKS_IN_THE_TIME = 10
"""So many looks would go into the time between two of them: looking is a tenth of the work."""
GUARD_WINDOW_S = 300.0
"""Guards look at so much at a time: a version that breaks after a week must not have the week's
good answers to its name."""


class Evidence(Record):
    """What is known of both versions by one look at the truths."""

    outcome: OutcomeName
    alpha: float
    looked_s: float
    """When the look began, in seconds since the A/B did."""
    num_predictions_new: int
    """Answered in the arm, with a truth or without."""
    num_predictions_old: int
    new: ArmMoments
    old: ArmMoments
    comparison: Comparison | None
    """None: an arm has too few units with a truth, or nothing varies."""

    @classmethod
    def of(
        cls,
        plan: RolloutPlan,
        *,
        new: ArmMoments,
        old: ArmMoments,
        num_predictions: tuple[int, int],
        looked_s: float,
    ) -> Self:
        """Weigh what both arms show.

        Args:
            plan: of an A/B.
            new: the new version's outcomes.
            old: the old one's.
            num_predictions: of the new arm and of the old one.
            looked_s: see the field.
        """
        assert plan.outcome is not None  # noqa: S101 - the plan's own check says so
        return cls(
            outcome=plan.outcome,
            alpha=plan.alpha,
            looked_s=looked_s,
            num_predictions_new=num_predictions[0],
            num_predictions_old=num_predictions[1],
            new=new,
            old=old,
            comparison=compare(new, old, alpha=plan.alpha),
        )

    @property
    def is_new_better(self) -> bool | None:
        """Which version is better; None: nobody can say yet."""
        found = self.comparison
        if found is None or found.p_value > self.alpha:
            return None
        return (found.difference > 0) == OUTCOMES[self.outcome].is_more_better

    @property
    def num_units_missing(self) -> int | None:
        """About so many more units decide, did the difference stay as it is; None: no telling."""
        if self.comparison is None:
            missing = sum(max(0, MIN_UNITS - arm.num_units) for arm in (self.new, self.old))
            return missing or None
        factor = self.comparison.factor_missing
        if factor is None:
            return None
        return math.ceil((factor - 1) * (self.new.num_units + self.old.num_units))

    def words(self) -> str:
        """Say in one line what is known."""
        arms = f"{self.outcome} {self.new.mean:.4g} against {self.old.mean:.4g}"
        units = f"{self.new.num_units:,} and {self.old.num_units:,} units with a truth"
        found = self.comparison
        if found is None:
            return f"{units}, and {MIN_UNITS} each that differ are needed"
        interval = f"difference {found.difference:+.4g} [{found.low:+.4g}, {found.high:+.4g}]"
        return f"{arms}, {interval}, p {found.p_value:.2g}, {units}"


def decide_ab(
    plan: RolloutPlan,
    *,
    held_s: float,
    new: ArmCounts,
    old: ArmCounts,
    evidence: Evidence | None,
    is_last_look: bool,
    asked_back: str | None = None,
) -> Decision:
    """Say how an A/B rollout goes on.

    Args:
        plan: what was planned.
        held_s: for how long the new version has had its share.
        new: what the new version did of late, for the guards.
        old: what the old version did of late.
        evidence: what the last look found; None: nobody has looked yet.
        is_last_look: a look has ended that began after the time was over, whatever it found.
        asked_back: somebody's reason to give up; None: nobody asks.
    """
    taken_back = why_back(plan, new=new, old=old, asked_back=asked_back)
    if taken_back is not None:
        return taken_back
    known = "no truth was read" if evidence is None else evidence.words()
    if evidence is not None and evidence.is_new_better is not None:
        better = plan.to_version if evidence.is_new_better else plan.from_version
        action = "finish" if evidence.is_new_better else "back"
        return Decision.model_validate(
            {"action": action, "reason": f"version {better} is better: {known}"}
        )
    left_s = plan.hold_s - held_s
    if left_s > 0:
        return Decision(action="hold", reason=f"{as_duration(math.ceil(left_s))} to go at most")
    if not is_last_look:
        return Decision(action="hold", reason="a last look at the truths")
    reason = f"no difference found: in {as_duration(plan.hold_s)}, {known}"
    return Decision(action="back", reason=reason)


def next_look_s(looked_s: float, took_s: float) -> float:
    """Say when to look again, in seconds since the A/B began.

    A hundredth of the time that has gone by: a test of an hour looks each half minute, one of a
    week each two hours, and none writes a table's commit for each of them. The test allows a look
    at any moment, so this is only a matter of cost; nor does looking take over a tenth of the time.
    """
    return looked_s + max(_FIRST_WAIT_S, _SHARE_OF_TIME * looked_s, _LOOKS_IN_THE_TIME * took_s)
