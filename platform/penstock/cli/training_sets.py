"""`penstock features training-set`: labelled rows with their features, for work of your own."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.features import UseCase, features_app, iso_time
from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console


def register(_app: typer.Typer) -> None:
    """Add the command to `features`."""
    features_app.command("training-set")(training_set)


def training_set(
    use_case: UseCase,
    service: Annotated[
        str | None, typer.Option(help="The feature service; the model's by default.")
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(help="First event time (ISO 8601, UTC); the model's split by default."),
    ] = None,
    end: Annotated[
        str | None, typer.Option(help="The time to stop before; the model's split by default.")
    ] = None,
    table: Annotated[
        str | None, typer.Option(help="Write the rows to this table too, <use case>.<name>.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Join every label row with its features as they were known at its time, as a Ray job.

    The set is kept by its content, as Parquet files that any library reads; asked again it is the
    same one. `penstock features explain` tells how it is joined.
    """
    from penstock.cluster.jobs import run_job
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model
    from penstock.use_cases import split_name

    settings = load_settings()
    # A wrong name is told before a job is started for it.
    load_model(settings, use_case)
    arguments = [use_case]
    if service is not None:
        arguments += ["--service", service]
    for option, moment in (("--start", start), ("--end", end)):
        if moment is not None:
            arguments += [option, iso_time(moment, option=option)]
    if table is not None:
        split_name(table)
        arguments += ["--table", table]
    result = run_job(settings, "training_set", arguments)
    emit(result, as_json=as_json, render=lambda console: _render(console, result))


def _render(console: "Console", result: dict[str, Any]) -> None:
    console.print(
        f"{result['num_rows']:,} rows with {len(result['feature_names'])} features and the label "
        f"{result['label']}",
        highlight=False,
    )
    versions = ", ".join(f"{name} {version}" for name, version in result["table_versions"].items())
    console.print(f"from {versions}", highlight=False, soft_wrap=True)
    console.print(f"id   {result['id']}", highlight=False, soft_wrap=True)
    console.print(f"in   {result['path']}", highlight=False, soft_wrap=True)
    if "table" in result:
        written = result["table"]
        console.print(f"and  {written['table']} version {written['version']}", highlight=False)
