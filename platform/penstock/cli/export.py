"""`penstock models export`: a model version for machines that have no Penstock."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.models import models, verified
from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console


def register(_app: typer.Typer) -> None:
    """Add `export` to `models`."""
    models.command()(export)


def export(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The model's name.")],
    to: Annotated[Path, typer.Option(help="A new or an empty folder.")],
    version: Annotated[
        int | None, typer.Option(min=1, help="The version; without it, the champion.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write a version's graph, and a predictor of 60 lines that needs onnxruntime alone."""
    from penstock.settings import load_settings

    settings = load_settings()
    from penstock.registry.export import export as export_package

    _, _, package = verified(settings, name, version)
    made = export_package(settings, package, to)

    def render(console: "Console") -> None:
        for file in made.files:
            console.print(str(Path(made.folder) / file), highlight=False, soft_wrap=True)
        console.print("\nThere:", highlight=False)
        console.print("pip install -r requirements.txt && python predict.py --check")

    emit(made, as_json=as_json, render=render)
