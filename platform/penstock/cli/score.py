"""`penstock score`: batch scores of a table's rows, as a Ray job."""

from datetime import datetime
from typing import Annotated

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit
from penstock.cli.request_ids import RequestId


def register(app: typer.Typer) -> None:
    """Add the commands of this noun."""
    app.command("score")(score)


def score(
    use_case: Annotated[str, typer.Argument(help="The use case whose model scores.")],
    table: Annotated[
        str, typer.Option(help="The table with the rows to score: <use case>.<table>.")
    ],
    out: Annotated[str, typer.Option(help="The table to append the scores to; made when absent.")],
    start: Annotated[
        datetime | None, typer.Option(help="The first event time, UTC; else the table's first.")
    ] = None,
    end: Annotated[
        datetime | None,
        typer.Option(help="The event time to stop before, UTC; else after the table's last."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(min=1, help="The model version that scores; else the champion.")
    ] = None,
    table_version: Annotated[
        int | None, typer.Option(min=0, help="The version of the table to read; else the newest.")
    ] = None,
    request_id: RequestId = None,
    as_json: JsonFlag = False,
) -> None:
    """Score every row of a table with the features known at its time.

    The same model, table version and period again writes nothing: the scores are there. After a
    kill, the same command goes on with what is missing.
    """
    from penstock.cluster.jobs import run_job
    from penstock.data.contracts import get_table
    from penstock.errors import UserError
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model
    from penstock.use_cases import split_name

    if start is not None and end is not None and not start < end:
        raise UserError(f"--start {start} is not before --end {end}")
    settings = load_settings()
    # A wrong name is told at once, not by a job after seconds.
    load_model(settings, use_case)
    get_table(settings, table)
    split_name(out)
    arguments = [use_case, "--table", table, "--out", out]
    for option, value in (
        ("--start", start.isoformat() if start else None),
        ("--end", end.isoformat() if end else None),
        ("--version", version),
        ("--table-version", table_version),
    ):
        if value is not None:
            arguments += [option, str(value)]
    result = run_job(settings, "score", arguments, request_id=request_id)

    def render(console: Console) -> None:
        done = "scored" if result["is_new"] else "were scored before"
        console.print(
            f"{result['num_rows']:,} rows of {result['source']} version "
            f"{result['source_version']} {done} by {result['model']} version "
            f"{result['model_version']}: {result['out']} version {result['out_version']}",
            highlight=False,
            soft_wrap=True,
        )
        if result["is_new"] and result["num_slices_found"]:
            console.print(
                f"{result['num_slices_found']:,} of {result['num_slices']:,} slices had been "
                "scored by a run that did not end",
                highlight=False,
                soft_wrap=True,
            )
        if result["num_without_score"]:
            console.print(
                f"{result['num_without_score']:,} of them have no finite score: it is null",
                style="yellow",
                soft_wrap=True,
            )

    emit(result, as_json=as_json, render=render)
