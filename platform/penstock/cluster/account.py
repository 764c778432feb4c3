"""A running job's account: what it takes is written down while it runs, and held to the budget."""

import json
import os
import signal
import sys
import uuid
from datetime import UTC, datetime
from types import FrameType

from penstock.cluster import ledger
from penstock.cluster.ledger import BY_HAND, JobCost, State
from penstock.cluster.usage import Meter, Usage, held_by_this_job
from penstock.errors import GateRefusedError
from penstock.settings import Settings, inherited_environment

_OVERDRAWN = signal.SIGUSR1


class Account:
    """One job's; opened once Ray is there, closed with how the job ended."""

    def __init__(self, settings: Settings, kind: str, use_case: str | None) -> None:
        """Begin to count."""
        now = datetime.now(UTC)
        self._settings = settings
        self._cost = JobCost(
            job_id=_submission_id() or f"{BY_HAND}{uuid.uuid4().hex}",
            kind=kind,
            use_case=use_case,
            state="running",
            started=now,
            seen=now,
            usage=Usage(),
        )
        self._left = left(settings, use_case)
        self._meter = Meter(held_by_this_job, self._tell)

    def open(self) -> None:
        """Write the first record, and watch."""
        if self._left is not None:
            signal.signal(_OVERDRAWN, self._refuse)
        self._keep(Usage(), "running")
        self._meter.start()

    def describe(
        self,
        *,
        subject: str | None = None,
        num_rows: int | None = None,
        model_versions: tuple[str, ...] = (),
    ) -> None:
        """Say what the job is about, for estimates and sums; a later word replaces an earlier."""
        told = {"subject": subject, "num_rows": num_rows, "model_versions": model_versions}
        self._cost = self._cost.model_copy(update={k: v for k, v in told.items() if v})

    def close(self, state: State) -> None:
        """Write the last record."""
        if self._left is not None:
            signal.signal(_OVERDRAWN, signal.SIG_IGN)
        self._keep(self._meter.stop(), state)

    def _tell(self, usage: Usage) -> None:
        self._keep(usage, "running")
        here = self._cost.model_copy(update={"usage": usage}).money(self._settings.cost)
        if self._left is not None and here > self._left:
            # The main thread is the one to unwind.
            os.kill(os.getpid(), _OVERDRAWN)

    def _keep(self, usage: Usage, state: State) -> None:
        now = datetime.now(UTC)
        self._cost = self._cost.model_copy(update={"usage": usage, "seen": now, "state": state})
        try:
            ledger.write(self._settings, self._cost)
        except OSError as error:
            # The job's work does not hang on it.
            sys.stderr.write(f"what the job took could not be written down: {error}\n")

    def _refuse(self, _signal: int, _frame: FrameType | None) -> None:
        # Again at each reading: who catches this one and goes on is stopped there.
        raise overdrawn(self._settings, self._cost.use_case or "")


def left(settings: Settings, use_case: str | None) -> float | None:
    """Say how much of this month's budget is left; None: the use case has no budget.

    Raises:
        GateRefusedError: nothing is left.
    """
    budget = settings.cost.budgets_per_month.get(use_case or "")
    if use_case is None or budget is None:
        return None
    rest = budget - ledger.spent(settings, use_case)
    if rest <= 0:
        raise overdrawn(settings, use_case)
    return rest


def overdrawn(settings: Settings, use_case: str) -> GateRefusedError:
    """Say that a use case's budget is spent, and what to do."""
    cost = settings.cost
    budget = cost.budgets_per_month[use_case]
    return GateRefusedError(
        f"{use_case} has spent its budget of this month",
        allowed=f"{budget:,.2f} {cost.currency} a month",
        next_step=f"see what it went into: `penstock cost {use_case}`; raise "
        f"cost.budgets_per_month.{use_case}, or wait for the next month. The same command "
        "goes on where this one stopped",
    )


def _submission_id() -> str | None:
    # Ray tells it to the driver of a submitted job nowhere else.
    config = inherited_environment().get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    found = json.loads(config).get("metadata", {}).get("job_submission_id") if config else None
    return str(found) if found else None
