"""`penstock reproduce`: makes a run again from its record, and says whether the same came out."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit
from penstock.cli.request_ids import RequestId

_STYLES = {"reproduced": "bold green", "same within tolerance": "green", "differs": "bold red"}


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("reproduce")(reproduce)


def reproduce(
    run: Annotated[str, typer.Argument(help="A run's id; `penstock models show` tells it.")],
    anyway: Annotated[
        bool, typer.Option("--anyway", help="Go on with other code or packages than the run's.")
    ] = False,
    request_id: RequestId = None,
    as_json: JsonFlag = False,
) -> None:
    """Make a run again from its record alone, and compare metrics and predictions.

    The training set is joined again from the recorded table versions. No model version is made.
    Exit code 3: something else came out, or code or packages are not the run's own.
    """
    from penstock.cluster.jobs import run_job
    from penstock.errors import PenstockError
    from penstock.settings import load_settings
    from penstock.training.runs import find_run

    settings = load_settings()
    use_case = find_run(settings, run).use_case
    arguments = [run, "--use-case", use_case, *(["--anyway"] if anyway else [])]

    def show(result: Mapping[str, Any]) -> None:
        emit(result, as_json=as_json, render=lambda console: _render(console, result))

    try:
        result = run_job(settings, "reproduce", arguments, request_id=request_id)
    except PenstockError as error:
        if error.result:
            show(error.result)
        raise
    show(result)


def _render(console: Console, result: Mapping[str, Any]) -> None:
    from rich.table import Table

    table = Table("metric", "recorded", "again", "difference")
    for name, (recorded, again) in result["metrics"].items():
        table.add_row(name, f"{recorded:.9f}", f"{again:.9f}", f"{again - recorded:+.1e}")
    console.print(table)
    for each in result["differences"]:
        console.print(
            f"{each['what']}: recorded {each['recorded']}, again {each['again']}",
            highlight=False,
            soft_wrap=True,
        )
    for each in result["circumstances"]:
        console.print(
            f"run on other {each['what']}: {each['recorded']} then, {each['again']} now",
            highlight=False,
            soft_wrap=True,
        )
    verdict = result["verdict"]
    console.print(
        f"run {result['run_id']} ({result['estimator']}): [{_STYLES[verdict]}]{verdict}[/]",
        highlight=False,
        soft_wrap=True,
    )
