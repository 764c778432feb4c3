"""`penstock feedback`: bring in what turned out to be true, and see how much of it is known."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.features import UseCase
from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.monitoring.truth import FeedbackReport

feedback_app = typer.Typer(
    help="The truth about predictions: bring it in, see how much is known.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.add_typer(feedback_app, name="feedback")


@feedback_app.command()
def ingest(
    use_case: UseCase,
    file: Annotated[
        Path, typer.Argument(help="A Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl) file.")
    ],
    truth: Annotated[str, typer.Option(help="The column of the truth.")] = "truth",
    prediction_id: Annotated[
        str, typer.Option(help="The column of prediction ids; without --entity.")
    ] = "prediction_id",
    entity: Annotated[
        list[str] | None,
        typer.Option(
            help="A field of requests, and column, that names the entity; again for more."
        ),
    ] = None,
    event_time: Annotated[
        str, typer.Option(help="The column of the time that was asked about; with --entity.")
    ] = "event_time",
    known_at: Annotated[
        str | None,
        typer.Option(help="The column of when the truth was known; without it, now."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the truth about predictions from a file, by prediction id or by entity and time.

    The same file, read by the same columns, counts once. Bad rows go to the quarantine of the table
    <use case>.feedback.
    """
    from penstock.cluster.jobs import run_job
    from penstock.settings import load_settings
    from penstock.use_cases import use_case_folder

    settings = load_settings()
    # A wrong name is told before a job is started for it.
    use_case_folder(settings, use_case)
    arguments = ["ingest", use_case, str(file.absolute())]
    options = {"--truth": truth, "--prediction-id": prediction_id, "--event-time": event_time}
    if known_at is not None:
        options["--known-at"] = known_at
    for option, value in [*options.items(), *(("--entity", name) for name in entity or ())]:
        # As one word: a column's name may begin with a dash.
        arguments.append(f"{option}={value}")
    report = run_job(settings, "feedback", arguments)
    emit(report, as_json=as_json, render=lambda console: _render_ingest(console, report))


@feedback_app.command()
def show(use_case: UseCase, as_json: JsonFlag = False) -> None:
    """Collect feedback, and show how many predictions have a truth, and how late truths come."""
    from penstock.cluster.jobs import run_job
    from penstock.monitoring.truth import FeedbackReport
    from penstock.settings import load_settings
    from penstock.use_cases import use_case_folder

    settings = load_settings()
    use_case_folder(settings, use_case)
    report = FeedbackReport.model_validate(run_job(settings, "feedback", ["show", use_case]))
    emit(report, as_json=as_json, render=lambda console: _render(console, report))


def _render_ingest(console: "Console", report: dict[str, Any]) -> None:
    for rule, number in report["broken_rules"].items():
        console.print(f"  {number:,} rows broke {rule}", markup=False, soft_wrap=True)
    console.print(
        f"{Path(report['source']).name} {report['status']}: {report['num_read']:,} read = "
        f"{report['num_kept']:,} kept + {report['num_quarantined']:,} quarantined",
        markup=False,
        soft_wrap=True,
    )


def _render(console: "Console", report: "FeedbackReport") -> None:
    from rich.table import Table

    from penstock.durations import as_duration

    grid = Table("predictions", "number", "with a truth", box=None, header_style="bold")
    for name, number, known in (
        ("all", report.num_predictions, report.num_with_truth),
        ("due", report.num_due, report.num_due_with_truth),
    ):
        share = f"{known / number:.1%}" if number else "-"
        grid.add_row(name, f"{number:,}", f"{known:,} ({share})")
    console.print(grid, "")
    if report.delay_s:
        told = ", ".join(f"q {q} {as_duration(s)}" for q, s in report.delay_s.items())
        declared = as_duration(report.label_delay_s) if report.label_delay_s else "none"
        console.print(f"known after: {told}; declared delay: {declared}", soft_wrap=True)
    console.print(
        f"{report.num_feedback:,} feedback: {report.num_repeated:,} repeated, "
        f"{report.num_unmatched:,} of no known prediction",
        soft_wrap=True,
    )
    if report.num_late:
        console.print(f"{report.num_late:,} truths came later than declared", style="yellow")
    if report.num_contradicted:
        console.print(
            f"{report.num_contradicted:,} predictions were told different truths about; the one "
            "known last counts",
            style="yellow",
            soft_wrap=True,
        )
