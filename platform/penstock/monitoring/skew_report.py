"""What an audit of served features says."""

from collections.abc import Iterable, Mapping
from datetime import datetime

from penstock.monitoring.skew_policy import REASONS, Reason
from penstock.records import Record
from penstock.serving.log_collection import Collected


class Example(Record):
    """One cell that differs."""

    prediction_id: str
    served_at: datetime
    as_of: datetime
    served: float | None
    recomputed: float | None
    reason: Reason
    why: str


class FeatureAudit(Record):
    """What was found of one feature."""

    service: str
    feature: str
    num_cells: int
    num_by_reason: dict[Reason, int]
    """The cells that differ, by why."""
    examples: tuple[Example, ...]

    @property
    def num_differing(self) -> int:
        """How many cells differ."""
        return sum(self.num_by_reason.values())


class AuditReport(Record):
    """Served features beside what training would see now."""

    use_case: str
    since: datetime | None
    until: datetime | None
    num_predictions: int
    """Those that were looked at."""
    num_waiting: int
    """Predictions so new that the feature tables may lack events which were online."""
    num_given: int
    """Predictions whose request brought features itself; they are not looked at."""
    num_cells: int
    num_by_reason: dict[Reason, int]
    """The cells that differ, by why."""
    features: tuple[FeatureAudit, ...]
    table_versions: dict[str, int]
    """The feature tables that the recomputed values come from."""
    collected: Collected

    @property
    def num_unexplained(self) -> int:
        """The cells that must not be."""
        return self.num_by_reason.get("unexplained", 0)


def total(counts: Iterable[Mapping[Reason, int]]) -> dict[Reason, int]:
    """Add counts by reason."""
    listed = list(counts)
    sums = {reason: sum(count.get(reason, 0) for count in listed) for reason in REASONS}
    return {reason: number for reason, number in sums.items() if number}
