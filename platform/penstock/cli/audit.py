"""`penstock features audit`: did serving see what training would have seen?"""

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.features import UseCase, features_app
from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.monitoring.skew_report import AuditReport


def register(_app: typer.Typer) -> None:
    """Add `audit` to `features`."""
    features_app.command("audit")(audit)


def audit(
    use_case: UseCase,
    since: Annotated[
        datetime | None, typer.Option(help="Predictions served from then on, UTC; else all.")
    ] = None,
    until: Annotated[
        datetime | None, typer.Option(help="Predictions served before then, UTC; else all.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Write the report as JSON, and a picture beside it."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Hold every served feature against what training would see, as a Ray job.

    The prediction log is collected into the table <use case>.predictions first. Each value that
    differs is told with its reason; if there is one that nothing explains, the exit code is 3.
    """
    from penstock.cluster.jobs import run_job
    from penstock.errors import GateRefusedError, UserError
    from penstock.files import write_whole
    from penstock.monitoring.skew_report import AuditReport
    from penstock.settings import load_settings
    from penstock.use_cases import use_case_folder

    if since is not None and until is not None and not since < until:
        raise UserError(f"--since {since} is not before --until {until}")
    if out is not None and out.suffix != ".json":
        raise UserError(f"--out is {str(out)!r}", allowed="a file that ends in .json")
    settings = load_settings()
    # A wrong name is told before a job is started for it.
    use_case_folder(settings, use_case)
    arguments = [use_case]
    for option, value in (("--since", since), ("--until", until)):
        if value is not None:
            arguments += [option, value.isoformat()]
    report = AuditReport.model_validate(run_job(settings, "audit", arguments))
    if out is not None:
        from penstock.monitoring.skew_chart import draw

        write_whole(out, report.model_dump_json(indent=2).encode())
        write_whole(out.with_suffix(".png"), draw(report))
    emit(report, as_json=as_json, render=lambda console: _render(console, report))
    if report.num_unexplained:
        raise GateRefusedError(
            f"{report.num_unexplained:,} served values differ from what training would see, and "
            "nothing explains it",
            next_step="look at the examples: the declarations or the code changed after the "
            "deploy, the online rows were not made from these tables, or late events were "
            "ingested and never materialized",
        )


def _render(console: "Console", report: "AuditReport") -> None:
    from rich.table import Table

    from penstock.monitoring.skew_policy import REASONS

    reasons = [reason for reason in REASONS if reason in report.num_by_reason]
    grid = Table("feature", "values", "differ", *reasons, box=None, header_style="bold")
    for column in grid.columns[1:]:
        column.justify = "right"
    for feature in report.features:
        share = feature.num_differing / feature.num_cells
        counts = [f"{feature.num_by_reason.get(reason, 0):,}" for reason in reasons]
        grid.add_row(feature.feature, f"{feature.num_cells:,}", f"{share:.2%}", *counts)
    console.print(grid, "")
    shown = Table("feature", "prediction", "served", "training", "why", box=None)
    shown.columns[-1].overflow = "fold"
    for feature in report.features:
        for reason in reasons:
            example = next((e for e in feature.examples if e.reason == reason), None)
            if example is not None:
                values = (_number(example.served), _number(example.recomputed))
                why = f"{reason}: {example.why}"
                shown.add_row(feature.feature, example.prediction_id, *values, why)
    if shown.row_count:
        console.print(shown, "")
    num_differing = sum(report.num_by_reason.values())
    console.print(
        f"{report.num_predictions:,} predictions, {report.num_cells:,} values: "
        f"{num_differing:,} differ, {report.num_unexplained:,} unexplained",
        highlight=False,
        soft_wrap=True,
    )
    for line in _remarks(report):
        console.print(line, style="yellow", soft_wrap=True)


def _remarks(report: "AuditReport") -> list[str]:
    collected, found = report.collected, []
    if report.num_waiting:
        found.append(
            f"{report.num_waiting:,} newer predictions were not looked at: events came after the "
            f"features were built; run `penstock features build {report.use_case}`"
        )
    if report.num_given:
        found.append(
            f"{report.num_given:,} predictions were not looked at: their requests brought features"
        )
    if collected.num_torn_segments:
        found.append(
            f"{collected.num_torn_segments} segments of the log ended in the middle of a write: "
            "what was answered in their last moments is missing"
        )
    if collected.num_silent_replicas:
        found.append(
            f"{collected.num_silent_replicas} replicas did not hand over their newest predictions; "
            "audit again"
        )
    return found


def _number(value: float | None) -> str:
    return "missing" if value is None else f"{value:.6g}"
