"""What a training would cost, before it starts: from past ones and the rows there are now."""

from collections.abc import Iterable
from typing import Literal

from penstock.cluster import ledger
from penstock.cluster.account import left
from penstock.cluster.spending import Estimate, estimate
from penstock.errors import GateRefusedError
from penstock.features.pinned_rows import PinnedRows
from penstock.records import Record
from penstock.settings import Settings
from penstock.training.declarations import Model

_ALL = 1 << 60


class PlannedJob(Record):
    """One job that a command would start."""

    kind: str
    estimators: str
    num_rows: int
    """Rows of the label table in the time of the split."""
    estimate: Estimate | None
    """None: no job like it has ended well yet."""
    currency: str
    budget_left: float | None
    """Of this month; None: the use case has no budget."""


def plan(
    settings: Settings, model: Model, names: Iterable[str], *, kind: Literal["train", "measure"]
) -> PlannedJob:
    """Say what the job would take; nothing is started.

    Raises:
        NotFoundError: the label table is not there yet.
    """
    subject = subject_of(names)
    num_rows = label_rows(settings, model)
    past = [
        cost
        for cost in ledger.read_all(settings)
        if (cost.kind, cost.use_case, cost.subject) == (kind, model.use_case, subject)
    ]
    try:
        budget_left = left(settings, model.use_case)
    except GateRefusedError:
        budget_left = 0.0
    return PlannedJob(
        kind=kind,
        estimators=subject,
        num_rows=num_rows,
        estimate=estimate(past, settings.cost, num_rows=num_rows),
        currency=settings.cost.currency,
        budget_left=budget_left,
    )


def subject_of(names: Iterable[str]) -> str:
    """Name what a job trains, whatever the order."""
    return " ".join(sorted(names))


def label_rows(settings: Settings, model: Model) -> int:
    """Count the rows of the label table in the time of the split."""
    rows = PinnedRows(settings, model.label_table, None)
    start, end = model.split.train_start_utc, model.split.test_end_utc
    return sum(part.num_rows for part in rows.slices(start, end, max_rows=_ALL))
