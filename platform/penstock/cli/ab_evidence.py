"""How `penstock rollout` shows what an A/B knows."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from penstock.durations import as_duration

if TYPE_CHECKING:
    from penstock.serving.ab_policy import Evidence
    from penstock.serving.rollout_files import Rollout


def render_evidence(out: Console, rollout: "Rollout", evidence: "Evidence") -> None:
    """Print both arms, their difference with its interval, and what is missing."""
    plan = rollout.plan
    table = Table(
        "version", "predictions", "with a truth", plan.split_by, f"mean {evidence.outcome}",
        box=None, header_style="bold",
    )  # fmt: skip
    for version, number, arm in (
        (plan.from_version, evidence.num_predictions_old, evidence.old),
        (plan.to_version, evidence.num_predictions_new, evidence.new),
    ):
        mean = f"{arm.mean:.5g}" if arm.num_units else "-"
        told = (f"{arm.num_outcomes:,}", f"{arm.num_units:,}", mean)
        table.add_row(str(version), f"{number:,}", *told)
    out.print(table, "")
    lines = []
    found = evidence.comparison
    if found is not None:
        certainty = f"{1 - evidence.alpha:.4g}"
        lines.append(
            f"difference (new - old): {found.difference:+.4g}, in [{found.low:+.4g}, "
            f"{found.high:+.4g}] at every moment with {certainty}; p {found.p_value:.2g}"
        )
    lines.append(f"{_verdict(rollout, evidence)}, as of {as_duration(evidence.looked_s)}")
    for line in lines:
        out.print(line, markup=False, highlight=False, soft_wrap=True)


def _verdict(rollout: "Rollout", evidence: "Evidence") -> str:
    plan = rollout.plan
    if evidence.is_new_better is not None:
        better = plan.to_version if evidence.is_new_better else plan.from_version
        return f"version {better} is better"
    missing = evidence.num_units_missing
    if missing is None:
        return "undecided, and no telling how many truths are missing"
    if evidence.comparison is None:
        return f"too few: truths of {missing:,} more {plan.split_by} are missing to say anything"
    pace = (evidence.new.num_units + evidence.old.num_units) / max(evidence.looked_s, 1.0)
    return (
        f"undecided: truths of some {missing:,} more {plan.split_by} would decide, if the "
        f"difference stays ({as_duration(missing / pace)} at this pace)"
    )
