"""`penstock features`: compute feature tables, declare them to Feast, bring them online."""

from typing import TYPE_CHECKING, Annotated, Any

import typer

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.features.overview import Overview
    from penstock.features.training_set import JoinExplanation

UseCase = Annotated[str, typer.Argument(help="A folder of the feature repo, e.g. churn.")]

features_app = typer.Typer(
    help="Compute feature tables, declare features, bring them online.", no_args_is_help=True
)


def register(app: typer.Typer) -> None:
    """Add `features` and its commands."""
    app.add_typer(features_app, name="features")


@features_app.command("apply")
def apply_command(
    use_case: Annotated[
        str | None,
        typer.Argument(
            help="A folder of the feature repo; all of them by default, and then what none of "
            "them declares any more is removed."
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Write the declared entities, views and services to Feast's registry."""
    from penstock.features.store import apply
    from penstock.settings import load_settings

    changes = apply(load_settings(), None if use_case is None else [use_case])

    def render(console: "Console") -> None:
        for change in changes:
            console.print(f"{change.change:8} {change.kind.replace('_', ' ')}: {change.name}")
        if not changes:
            console.print("nothing changed")

    emit(changes, as_json=as_json, render=render)


@features_app.command("build")
def build_command(
    use_case: UseCase,
    online: Annotated[
        bool, typer.Option("--online", help="Then bring the newest rows online: `materialize`.")
    ] = False,
    as_json: JsonFlag = False,
) -> None:
    """Compute the feature tables whose source or declaration changed, as a Ray job."""
    from penstock.cluster.jobs import run_job
    from penstock.features.declarations import load_feature_tables
    from penstock.settings import load_settings

    settings = load_settings()
    # A wrong name is told before a job is started for it.
    load_feature_tables(settings, use_case)
    result = run_job(settings, "build_features", [use_case, *(["--online"] if online else [])])

    def render(console: "Console") -> None:
        _render_built(console, result)
        if online:
            _render_materialized(console, result)

    emit(result, as_json=as_json, render=render)


@features_app.command("materialize")
def materialize_command(
    use_case: UseCase,
    until: Annotated[
        str | None,
        typer.Option(help="Leave out rows after this time (ISO 8601, UTC); now by default."),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Bring the newest feature row of each entity into the online store, as a Ray job."""
    from penstock.cluster.jobs import run_job
    from penstock.settings import load_settings
    from penstock.use_cases import use_case_folder

    settings = load_settings()
    arguments = [use_case]
    if until is not None:
        arguments += ["--until", iso_time(until, option="--until")]
    # A wrong name is told before a job is started for it.
    use_case_folder(settings, use_case)
    result = run_job(settings, "materialize", arguments)
    emit(result, as_json=as_json, render=lambda console: _render_materialized(console, result))


@features_app.command()
def show(use_case: UseCase, as_json: JsonFlag = False) -> None:
    """Show the feature tables, views and services, and how fresh each is."""
    from penstock.features.overview import overview
    from penstock.settings import load_settings

    found = overview(load_settings(), use_case)
    emit(found, as_json=as_json, render=lambda console: _render_overview(console, found))


@features_app.command()
def explain(use_case: UseCase, as_json: JsonFlag = False) -> None:
    """Say how the model's training set would be joined, in one task or many, and why."""
    from penstock.features import training_set
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model

    settings = load_settings()
    model = load_model(settings, use_case)
    found = training_set.explain(
        settings,
        use_case=use_case,
        service=model.feature_service,
        label_table=model.label_table,
        label=model.label,
        start=model.split.train_start_utc,
        end=model.split.test_end_utc,
        extra_columns=model.group_columns,
    )
    emit(found, as_json=as_json, render=lambda console: _render_explanation(console, found))


def iso_time(text: str, *, option: str) -> str:
    """Take a time that was typed.

    Raises:
        UserError: it is none.
    """
    from datetime import datetime

    from penstock.errors import UserError

    try:
        return datetime.fromisoformat(text).isoformat()
    except ValueError:
        raise UserError(
            f"{option} is {text!r}", allowed="an ISO 8601 time, for example 2018-08-15T00:00:00"
        ) from None


def _render_built(console: "Console", result: dict[str, Any]) -> None:
    from rich.table import Table

    if not result["feature_tables"]:
        console.print("no feature table is declared")
        return
    grid = Table("feature table", "version", "rows", "from", "", box=None, header_style="bold")
    for built in result["feature_tables"]:
        grid.add_row(
            built["table"]["table"],
            str(built["table"]["version"]),
            f"{built['table']['num_rows']:,}",
            f"{built['source']} version {built['source_version']}",
            "built" if built["is_new"] else "up to date",
        )
    console.print(grid)


def _render_materialized(console: "Console", result: dict[str, Any]) -> None:
    from rich.table import Table

    grid = Table("view", "entities", "newest event", box=None, header_style="bold")
    for view in result["views"]:
        grid.add_row(view["view"], f"{view['num_entities']:,}", str(view["newest_event"]))
    console.print(grid)


def _render_overview(console: "Console", found: "Overview") -> None:
    from rich.table import Table

    grid = Table("feature table", "version", "rows", "from", box=None, header_style="bold")
    for table in found.tables:
        source = table.source
        if table.version is None:
            grid.add_row(table.name, "not built", "", source)
            continue
        grid.add_row(
            table.name,
            str(table.version),
            f"{table.num_rows:,}",
            f"{source} version {table.source_version}",
        )
    console.print(grid, "")
    grid = Table("view", "by", "features", "valid for", "online until", box=None)
    for view in found.views:
        until = view.materialized_until
        grid.add_row(
            view.name,
            ", ".join(view.join_keys),
            str(len(view.features)),
            "always" if view.ttl_s is None else f"{view.ttl_s / 86_400:g} days",
            "not applied"
            if not view.is_applied
            else f"{until:%Y-%m-%d %H:%M:%S}"
            if until
            else "never",
        )
    console.print(grid, "")
    for service in found.services:
        features = ", ".join(service.features)
        console.print(f"[bold]service {service.name}[/bold]: {features}", soft_wrap=True)


def _render_explanation(console: "Console", found: "JoinExplanation") -> None:
    from rich.table import Table

    grid = Table("side", "rows", "bytes a row", box=None, header_style="bold")
    for side in (found.labels, *found.views):
        grid.add_row(side.name, f"{side.num_rows:,}", str(side.row_bytes))
    console.print(grid)
    console.print(
        f"{found.label_table} version {found.label_table_version}, "
        f"{found.start:%Y-%m-%d %H:%M} to {found.end:%Y-%m-%d %H:%M}: {found.num_files} files",
        highlight=False,
        soft_wrap=True,
    )
    console.print(f"[bold]{found.path.kind}[/bold]: {found.path.reason}", soft_wrap=True)
