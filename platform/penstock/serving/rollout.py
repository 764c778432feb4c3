"""A rollout as a plan: which share a new version gets, for how long, and what takes it back.

Pure: what was counted goes in, a decision with its reason comes out. `rolling.py` carries it out.
"""

import math
import re
from collections.abc import Sequence
from hashlib import blake2b
from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, model_validator

from penstock.durations import as_duration
from penstock.errors import UserError, unknown_name
from penstock.records import Record
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.outcomes import OUTCOMES, OutcomeName

Mode = Literal["canary", "shadow", "ab"]
Measure = Literal[
    "error_rate", "p50_ms", "p99_ms", "missing_rate", "score_shift", "score_difference", "flip_rate"
]
MEASURES: dict[Measure, str] = {
    "error_rate": "requests that the new version failed on, of all that it was given",
    "p50_ms": "half of its requests take longer, in milliseconds",
    "p99_ms": "one of a hundred of its requests takes longer, in milliseconds",
    "missing_rate": "rows that lacked a feature, of all its rows",
    "score_shift": "distance of the two versions' mean scores, in standard deviations of the old",
    "score_difference": "mean distance of the two scores of a row (shadow)",
    "flip_rate": "rows that the two versions decide differently (shadow)",
}
_OF_PAIRS = ("score_difference", "flip_rate")
DEFAULT_GUARD = "error_rate<0.01"
NUM_BUCKETS = 10_000
_GUARD = re.compile(r"\s*([a-z0-9_]+)\s*<\s*([0-9.eE+-]+)\s*")
_RATES = ("error_rate", "missing_rate", "flip_rate")
_SMALLEST_RATE = 1e-9
_MIN_ROWS_TO_COMPARE = 200
"""Means of fewer scores differ by chance."""


class Guard(Record):
    """What the new version must keep below a limit."""

    measure: Measure
    limit: float = Field(ge=0, allow_inf_nan=False)

    def __str__(self) -> str:
        return f"{self.measure}<{repr(self.limit).removesuffix('.0')}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a guard such as `p99_ms<50`.

        Raises:
            UserError: it is no such text, or measures what nobody counts.
        """
        found = _GUARD.fullmatch(text)
        try:
            limit = float(found[2]) if found else math.nan
        except ValueError:
            limit = math.nan
        if found is None or not math.isfinite(limit) or limit < 0:
            raise UserError(
                f"the guard {text!r} is none",
                allowed="<measure><<limit>, as in p99_ms<50 or error_rate<0.001",
                next_step=f"measures are {', '.join(MEASURES)}",
            )
        if found[1] not in MEASURES:
            raise unknown_name("measure", found[1], MEASURES)
        return cls.model_validate({"measure": found[1], "limit": limit})


class RolloutPlan(Record):
    """All that a rollout will do, before any of it is done."""

    model: str
    mode: Mode = "canary"
    from_version: int
    to_version: int
    shares_percent: tuple[float, ...] = Field(default=(), max_length=50)
    """Of the requests, one after the other; empty for a shadow, which answers nobody."""
    hold_s: float = Field(ge=0, le=30 * 86_400, allow_inf_nan=False)
    """How long each share stays before the next; of an A/B, how long it may go undecided."""
    guards: tuple[Guard, ...] = (Guard.parse(DEFAULT_GUARD),)
    min_answers: int = Field(default=1, ge=0)
    """A share stays until the new version has so many answers in it: silence proves nothing."""
    split_by: str
    """The field whose value decides: the same value stays with its version."""
    answer_within_ms: float = Field(default=250.0, gt=0, le=60_000)
    """The old version answers what the new one has not answered by then."""
    outcome: OutcomeName | None = None
    """What an A/B compares the versions by."""
    alpha: float = Field(default=0.05, ge=1e-6, le=0.5)
    """How often an A/B may find a difference where there is none."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        shares = self.shares_percent
        if self.mode == "shadow":
            if shares:
                raise ValueError("a shadow answers nobody, so it has no share")
            if self.outcome is not None:
                raise ValueError("a shadow answers nobody, so it has no outcome")
            return self
        if (self.mode == "ab") != (self.outcome is not None):
            raise ValueError("an A/B, and nothing else, is decided by an outcome")
        if self.mode == "ab" and (len(shares) != 1 or not 0 < shares[0] < 100):
            raise ValueError("an A/B has one share, above 0 and below 100 percent, such as 50")
        if not shares or any(not 0 < share <= 100 for share in shares):
            raise ValueError("shares are percent above 0 and up to 100, such as 5,25,50,100")
        if any(after <= before for before, after in pairwise(shares)):
            raise ValueError("each share must be above the one before it")
        paired = [str(guard) for guard in self.guards if guard.measure in _OF_PAIRS]
        if paired:
            raise ValueError(f"{paired[0]} needs both scores of a row, which a shadow has only")
        return self

    @property
    def num_stages(self) -> int:
        """How many holds there are."""
        return len(self.shares_percent) or 1

    def share_percent(self, stage: int) -> float:
        """Give the share of the requests that the new version answers in a stage."""
        return self.shares_percent[stage] if self.shares_percent else 0.0

    def steps(self) -> tuple[str, ...]:
        """Say what will happen, a line each."""
        old, new = f"version {self.from_version}", f"version {self.to_version}"
        hold = f"hold {as_duration(self.hold_s)}"
        if self.min_answers:
            hold += f" and {self.min_answers} answer{'s' * (self.min_answers > 1)} of it"
        lines = [
            f"start replicas that hold {old} and {new}; {old} answers everything",
            f"wait until {new} is verified and has predicted in each of them",
        ]
        if self.mode == "shadow":
            lines.append(f"{new} scores what {old} answers, and answers nobody; {hold}")
            lines.append(f"stop {new}; {old} serves on")
        elif self.outcome is not None:
            lines += self._ab_steps(self.outcome)
        else:
            for share in self.shares_percent:
                lines.append(f"{share:g} % of {self.split_by} to {new}; {hold}")
            lines.append(f"replace the replicas by those of {new} alone")
        guards = " and ".join(map(str, self.guards)) or "no guard"
        lines.append(f"at every moment: {guards}, else {old} answers everything within seconds")
        return tuple(lines)

    def _ab_steps(self, outcome: OutcomeName) -> list[str]:
        old, new = f"version {self.from_version}", f"version {self.to_version}"
        words = OUTCOMES[outcome].words
        return [
            f"{self.shares_percent[0]:g} % of {self.split_by} to {new}",
            "collect predictions and their truths now and then, and compare the versions by "
            f"{outcome}, {words}: once for each {self.split_by}",
            f"as soon as one is better (alpha {self.alpha:g}, at every moment): replace the "
            f"replicas by those of it alone; undecided after {as_duration(self.hold_s)}: by "
            f"those of {old}",
        ]


class Decision(Record):
    """What to do next, and why."""

    action: Literal["hold", "advance", "finish", "back"]
    reason: str


def decide(
    plan: RolloutPlan,
    *,
    stage: int,
    held_s: float,
    new: ArmCounts,
    old: ArmCounts,
    asked_back: str | None = None,
) -> Decision:
    """Say how a rollout goes on.

    Args:
        plan: what was planned.
        stage: which of its shares is on, from 0.
        held_s: for how long it has been on.
        new: what the new version did in this stage.
        old: what the old version did in this stage.
        asked_back: somebody's reason to give up; None: nobody asks.
    """
    taken_back = why_back(plan, new=new, old=old, asked_back=asked_back)
    if taken_back is not None:
        return taken_back
    left_s = plan.hold_s - held_s
    if left_s > 0:
        return Decision(action="hold", reason=f"{as_duration(math.ceil(left_s))} to go")
    if new.num_answers < plan.min_answers:
        answers = f"{new.num_answers} of {plan.min_answers} answers"
        return Decision(action="hold", reason=f"waiting for requests: {answers}")
    if stage + 1 < plan.num_stages:
        return Decision(action="advance", reason="every guard held")
    return Decision(action="finish", reason="every guard held")


def why_back(
    plan: RolloutPlan, *, new: ArmCounts, old: ArmCounts, asked_back: str | None
) -> Decision | None:
    """Give the way back where somebody asks for it or a guard is broken."""
    if asked_back is not None:
        return Decision(action="back", reason=asked_back)
    for guard in plan.guards:
        broken = judge(guard, new=new, old=old)
        if broken is not None:
            return Decision(action="back", reason=broken)
    return None


def judge(guard: Guard, *, new: ArmCounts, old: ArmCounts) -> str | None:
    """Say how a guard is broken; None where it holds, or where there is too little to say.

    A share of few requests counts as if of as many as the limit can tell apart: of 10 requests a
    single failure is 10 %, and breaks no limit of 1 %; a second one does.
    """
    found = _measured(guard, new=new, old=old)
    if found is None or found <= guard.limit:
        return None
    return f"{guard} is broken: {found:.4g} ({new.num_answers} answers)"


def _measured(guard: Guard, *, new: ArmCounts, old: ArmCounts) -> float | None:
    measure, limit = guard.measure, guard.limit
    if measure in ("p50_ms", "p99_ms"):
        quantile = 0.5 if measure == "p50_ms" else 0.99
        # So many slow ones of the smallest number that tells the quantile apart.
        enough = max(new.num_answers, round(1 / (1 - quantile)))
        num_slow = new.num_slower_than(limit)
        return new.latency_ms(quantile) if num_slow > (1 - quantile) * enough + 1e-9 else None
    if measure in _RATES:
        number, of = {
            "error_rate": (new.num_errors, new.num_answers + new.num_errors),
            "missing_rate": (new.num_rows_missing, new.num_rows),
            "flip_rate": (new.num_flips, new.num_pairs),
        }[measure]
        return number / max(of, 1, math.ceil(1 / max(limit, _SMALLEST_RATE)) if limit else 1)
    if measure == "score_difference":
        return new.sum_difference / new.num_pairs if new.num_pairs else None
    if min(new.num_rows, old.num_rows) < _MIN_ROWS_TO_COMPARE:
        return None
    distance = abs(new.mean_score - old.mean_score)
    return distance / old.score_deviation if old.score_deviation else distance and math.inf


def bucket(split_id: str, value: object) -> int:
    """Place a value between 0 and NUM_BUCKETS: the same one in every replica, and for every share.

    Args:
        split_id: of the rollout, so that the next one draws others.
        value: of the field that splits.
    """
    text = f"{split_id}:{value}".encode(errors="surrogatepass")
    return int.from_bytes(blake2b(text, digest_size=4).digest(), "big") % NUM_BUCKETS


def parse_shares(text: str) -> tuple[float, ...]:
    """Read `5,25,50,100`.

    Raises:
        UserError: it is no list of numbers.
    """
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise UserError(
            f"the shares {text!r} are no numbers", allowed="percent that rise, such as 5,25,50,100"
        ) from None


def parse_guards(texts: Sequence[str]) -> tuple[Guard, ...]:
    """Read guards, each text one or several with commas between.

    Raises:
        UserError: one of them is none.
    """
    parts = [part for text in texts for part in text.split(",") if part.strip()]
    return tuple(Guard.parse(part) for part in parts or [DEFAULT_GUARD])
