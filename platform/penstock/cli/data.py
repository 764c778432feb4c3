"""`penstock data`: bring raw sources into tables, and look at tables of any version."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

TableName = Annotated[str, typer.Argument(help="The table: <use case>.<name>.")]
VersionOption = Annotated[
    int | None, typer.Option("--version", help="An older version; the newest by default.")
]

data_app = typer.Typer(help="Bring raw sources into tables; look at tables.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    """Add `data` and its commands."""
    app.add_typer(data_app, name="data")


@data_app.command()
def ingest(
    table: TableName,
    files: Annotated[
        list[Path] | None,
        typer.Argument(help="Parquet (.parquet), CSV (.csv) or JSON Lines (.jsonl) files."),
    ] = None,
    url: Annotated[
        str | None,
        typer.Option(
            envvar="INGEST_URL",
            help="SQLAlchemy URL of a database to read instead of files, with --query.",
        ),
    ] = None,
    query: Annotated[str | None, typer.Option(help="The SQL query to read.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """Check sources against the table's contract and add their good rows, each source once.

    A file that is broken or of other columns is refused and the exit code is 2; the others land.
    """
    from penstock.cluster.jobs import run_job
    from penstock.data.contracts import get_table
    from penstock.data.source_kinds import SqlSource, leave_query
    from penstock.errors import PenstockError, UserError
    from penstock.settings import load_settings

    if (query is None) == (not files) or (query is not None and url is None):
        raise UserError(
            "there is nothing to ingest" if not files else "files and a query do not go together",
            allowed="files, or --url with --query",
        )
    settings = load_settings()
    get_table(settings, table)
    arguments = [table, *(str(path.absolute()) for path in files or [])]
    query_file = None
    if query is not None and url is not None:
        source = SqlSource.model_validate({"url": url, "query": query})
        query_file = leave_query(source, settings.storage_path / "queries")
        arguments += ["--query-file", str(query_file)]
    try:
        report = run_job(settings, "ingest", arguments)
    except PenstockError as error:
        # The job reports before it fails for a refused file: what landed must be seen.
        report = getattr(error, "result", None) or {}
        if report:
            emit(report, as_json=as_json, render=lambda c: _render_report(c, report))
        raise
    finally:
        if query_file is not None:
            query_file.unlink(missing_ok=True)
    emit(report, as_json=as_json, render=lambda console: _render_report(console, report))


def _render_report(console: "Console", report: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table("source", "status", box=None, header_style="bold")
    for heading in ("read", "kept", "quarantined"):
        grid.add_column(heading, justify="right")
    for source in report["sources"]:
        counts = (source["num_read"], source["num_kept"], source["num_quarantined"])
        grid.add_row(
            Path(source["source"]).name if "::" not in source["source"] else source["source"],
            source["status"],
            *(f"{n:,}" for n in counts),
        )
    console.print(grid)
    for source in report["sources"]:
        for rule, number in source["broken_rules"].items():
            console.print(f"  {number:,} rows broke {rule}", markup=False, soft_wrap=True)
        if source["ignored_columns"]:
            ignored = ", ".join(source["ignored_columns"])
            console.print(
                f"  left aside in {source['source']}: {ignored}", markup=False, soft_wrap=True
            )
    console.print(
        f"{report['table']} version {report['version']}: {report['num_read']:,} read = "
        f"{report['num_kept']:,} kept + {report['num_quarantined']:,} quarantined",
        soft_wrap=True,
    )


@data_app.command(name="list")
def list_(as_json: JsonFlag = False) -> None:
    """List every table with its newest version."""
    from penstock.data import tables
    from penstock.settings import load_settings

    settings = load_settings()
    found = [tables.latest(settings, name) for name in tables.list_tables(settings)]

    def render(console: "Console") -> None:
        from rich.table import Table

        if not found:
            console.print("no table yet; `penstock data ingest` makes one")
            return
        grid = Table("table", "version", "rows", "committed", box=None, header_style="bold")
        for at in found:
            grid.add_row(
                at.table, str(at.version), f"{at.num_rows:,}", f"{at.committed_at:%F %T} UTC"
            )
        console.print(grid)

    emit(found, as_json=as_json, render=render)


@data_app.command()
def show(table: TableName, version: VersionOption = None, as_json: JsonFlag = False) -> None:
    """Show a table's columns and what they hold, at any version."""
    from penstock.data import tables
    from penstock.settings import load_settings

    settings = load_settings()
    at = tables.latest(settings, table, version)
    columns = tables.column_statistics(settings, table, version=at.version)

    def render(console: "Console") -> None:
        from rich.table import Table

        console.print(f"{at.table} version {at.version}: {at.num_rows:,} rows")
        grid = Table("column", "type", box=None, header_style="bold")
        for heading in ("nulls", "distinct", "min", "q 0.05", "median", "q 0.95", "max"):
            grid.add_column(heading, justify="right")
        for c in columns:
            distinct = f"{c.distinct:,}" if c.distinct_is_exact else f"~{c.distinct:,}"
            quantiles = (c.quantiles.get(q) for q in ("0.05", "0.5", "0.95"))
            kind = "timestamp" if c.dtype.startswith("Datetime") else c.dtype.lower()
            values = (c.min, *quantiles, c.max)
            grid.add_row(c.name, kind, f"{c.nulls:,}", distinct, *(_short(v) for v in values))
        console.print(grid)

    result = {"table": at, "columns": [c.model_dump(mode="json") for c in columns]}
    emit(result, as_json=as_json, render=render)


def _short(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.6g}"
    text = str(value)
    return text[:19] if len(text) > 24 else text


@data_app.command()
def history(
    table: TableName,
    limit: Annotated[int, typer.Option(min=1, help="How many versions, newest first.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """List a table's versions, newest first; each can be read for ever."""
    from penstock.data import tables
    from penstock.settings import load_settings

    versions = tables.history(load_settings(), table, limit)

    def render(console: "Console") -> None:
        from rich.table import Table

        grid = Table("version", "rows", "operation", "committed", box=None, header_style="bold")
        for at in versions:
            grid.add_row(
                str(at.version), f"{at.num_rows:,}", at.operation, f"{at.committed_at:%F %T} UTC"
            )
        console.print(grid)

    emit(versions, as_json=as_json, render=render)


@data_app.command()
def quarantine(
    table: TableName,
    limit: Annotated[int, typer.Option(min=0, help="How many rows to show.")] = 20,
    as_json: JsonFlag = False,
) -> None:
    """Show the bad rows that ingests of a table set aside, with the rule that each one broke."""
    import polars as pl

    from penstock.data import quarantine as room
    from penstock.settings import load_settings

    bad = room.read(load_settings(), table)
    counts = bad.group_by("column", "rule").len("rows").sort("rows", "column", "rule").collect()
    rows = bad.sort("ingested_at", "source", "row", descending=[True, False, False]).head(limit)
    shown = rows.with_columns(pl.col("ingested_at").dt.to_string("iso:strict")).collect()
    result = {
        "table": table,
        "num_rows": int(counts["rows"].sum()),
        "rules": counts[::-1].to_dicts(),
        "rows": shown.to_dicts(),
    }

    def render(console: "Console") -> None:
        from rich.table import Table

        console.print(f"{table}: {result['num_rows']:,} rows in quarantine")
        grid = Table("source", "row", "column", "rule", "value", box=None, header_style="bold")
        for row in shown.iter_rows(named=True):
            source = Path(row["source"])
            shown_source = source.name if source.is_absolute() else row["source"]
            cells = (shown_source, row["row"], row["column"], row["rule"], row["value"])
            grid.add_row(*(str(cell).replace("[", r"\[") for cell in cells))
        if shown.height:
            console.print(grid)

    emit(result, as_json=as_json, render=render)
