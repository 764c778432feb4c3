"""`penstock features stream`: events into a table and online, as they come."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from penstock.cli.features import UseCase, features_app
from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console


def register(_app: typer.Typer) -> None:
    """Add `stream` to `features`."""
    features_app.command("stream")(stream)


def stream(
    use_case: UseCase,
    table: Annotated[
        str | None,
        typer.Option(help="The raw table, where the use case declares several streams."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(
            help="Only push, only kafka, or a JSON Lines file that grows (.jsonl); by default all "
            "that the stream declares."
        ),
    ] = None,
    until_idle: Annotated[
        float | None,
        typer.Option(min=0, help="End after so many seconds without an event; never by default."),
    ] = None,
    rebuild: Annotated[
        bool,
        typer.Option("--rebuild", help="First make the online rows again from the table."),
    ] = False,
    status: Annotated[
        bool, typer.Option("--status", help="Only tell how far the stream is, and if it runs.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Take events as they come: into the table, and into the online features at once.

    Runs as a Ray job until it is stopped. Each event counts once, whatever is killed and started
    again; one that breaks the table's contract goes to quarantine.
    """
    from penstock.cluster.jobs import run_job
    from penstock.features.stream_declarations import get_stream
    from penstock.settings import load_settings

    settings = load_settings()
    # A wrong name is told before a job is started for it.
    name = get_stream(settings, use_case, table).table
    if status:
        _show_status(name, as_json=as_json)
        return
    arguments = [use_case, "--table", name]
    if source is not None:
        # The job works elsewhere.
        is_file = source not in ("push", "kafka")
        arguments += ["--source", str(Path(source).absolute()) if is_file else source]
    if until_idle is not None:
        arguments += ["--until-idle", str(until_idle)]
    if rebuild:
        arguments.append("--rebuild")
    result = run_job(settings, "stream", arguments)

    def render(console: "Console") -> None:
        console.print(
            f"{result['table']} version {result['version']}: {result['num_events']:,} events = "
            f"{result['num_kept']:,} kept + {result['num_quarantined']:,} quarantined",
            highlight=False,
            soft_wrap=True,
        )

    emit(result, as_json=as_json, render=render)


def _show_status(table: str, *, as_json: bool) -> None:
    from penstock.features.stream_status import stream_status
    from penstock.settings import load_settings

    found = stream_status(load_settings(), table)

    def render(console: "Console") -> None:
        from rich.table import Table

        console.print(
            f"the stream of {found.table} {'runs' if found.is_running else 'does not run'}; "
            f"{found.num_flushes:,} flushes so far",
            highlight=False,
        )
        grid = Table("partition", box=None, header_style="bold")
        for heading in ("online up to", "in the table up to"):
            grid.add_column(heading, justify="right")
        for partition in sorted({*found.online, *found.in_table}):
            positions = (found.online.get(partition), found.in_table.get(partition))
            grid.add_row(partition, *("-" if at is None else f"{at:,}" for at in positions))
        if grid.row_count:
            console.print(grid)

    emit(found, as_json=as_json, render=render)
