"""`penstock explain`: what a score comes from, feature by feature and in words."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import JsonFlag, emit
from penstock.errors import UserError

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.settings import Settings


def register(app: typer.Typer) -> None:
    """Add `explain`."""
    app.command()(explain)


def explain(
    use_case: Annotated[str, typer.Argument(help="The use case, a folder of the feature repo.")],
    rows: Annotated[
        str | None,
        typer.Argument(
            help="One row as a JSON object, an array of rows, or a whole request; - reads stdin."
        ),
    ] = None,
    prediction_id: Annotated[
        str | None,
        typer.Option(help="Explain this logged prediction instead, by the version that gave it."),
    ] = None,
    version: Annotated[
        int | None, typer.Option(help="Insist on this model version.", min=1)
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the first row's explanation into this PNG file.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Say what each feature does to a score, in numbers and in words.

    Rows go to the deployed model. A logged prediction is explained here, from the features that it
    was made of; it needs no deployment.
    """
    from penstock.settings import load_settings

    if (rows is None) == (prediction_id is None):
        raise UserError(
            "both rows and --prediction-id" if rows else "nothing to explain",
            allowed="rows, or --prediction-id",
        )
    if prediction_id is not None and version is not None:
        raise UserError(
            "--version with --prediction-id", allowed="a prediction has the version that gave it"
        )
    if plot is not None and plot.suffix != ".png":
        raise UserError(f"--plot is {str(plot)!r}", allowed="a file that ends in .png")
    settings = load_settings()
    answer = (
        _of_rows(settings, use_case, str(rows), version)
        if prediction_id is None
        else _of_prediction(settings, use_case, prediction_id)
    )
    if plot is not None:
        from penstock.files import write_whole
        from penstock.serving.explanation_chart import draw

        title = f"{answer['model']} version {answer['version']}"
        write_whole(plot, draw(answer["explanations"][0], title=title))
    emit(answer, as_json=as_json, render=lambda out: _render(out, answer))


def _of_rows(settings: "Settings", use_case: str, rows: str, version: int | None) -> dict[str, Any]:
    from penstock.serving import server
    from penstock.serving.api_keys import own_token
    from penstock.serving.client import explain as ask
    from penstock.training.declarations import load_model

    text = typer.get_text_stream("stdin").read() if rows == "-" else rows
    model = load_model(settings, use_case).name
    token = own_token(settings)
    return ask(server.url(settings), model, text, version=version, token=token)


def _of_prediction(settings: "Settings", use_case: str, prediction_id: str) -> dict[str, Any]:
    from penstock.serving.past_predictions import explain_prediction, find_prediction
    from penstock.use_cases import use_case_folder

    use_case_folder(settings, use_case)
    return explain_prediction(settings, find_prediction(settings, use_case, prediction_id))


def _render(out: "Console", answer: dict[str, Any]) -> None:
    from rich.table import Table

    from penstock.serving.explanations import number, value_in_words

    for row in answer["explanations"]:
        table = Table(title=f"{answer['model']} version {answer['version']}")
        table.add_column("feature", overflow="fold")
        table.add_column("value", justify="right")
        table.add_column("part in the score", justify="right")
        for part in row["contributions"]:
            contribution = number(part["contribution"], signed=True)
            table.add_row(part["feature"], value_in_words(part["value"]), contribution)
        out.print(table)
        if "prediction_id" in row:
            told = f"{row['prediction_id']}, served {row['served_at']}"
            out.print(told, highlight=False, soft_wrap=True)
        out.print(row["text"], highlight=False, markup=False, soft_wrap=True)
