"""`penstock train` and `penstock results`: runs, their model versions and their numbers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit
from penstock.cli.request_ids import RequestId
from penstock.cli.training_tables import counts_text, interval_text, render_folds

_UseCase = Annotated[str, typer.Argument(help="The use case, a folder of the feature repo.")]


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("train")(train)
    app.command("results")(results)


def train(
    use_case: _UseCase,
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            "--estimator",
            "-e",
            help="Its name in model.py, as often as there are; default: the model's own.",
        ),
    ] = None,
    train_all: Annotated[
        bool, typer.Option("--all", help="Train every estimator of the model.")
    ] = False,
    promote: Annotated[
        bool, typer.Option("--promote", help="Make the best of them champion, if the gate lets it.")
    ] = False,
    folds: Annotated[
        bool,
        typer.Option(
            "--folds", help="Measure on the model's folds instead: mean, deviation and interval."
        ),
    ] = False,
    and_register: Annotated[
        bool, typer.Option("--register", help="After --folds, train and register as well.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what it would cost, and start nothing.")
    ] = False,
    request_id: RequestId = None,
    as_json: JsonFlag = False,
) -> None:
    """Train a model and register what comes out as a new version, the challenger.

    Of several estimators each becomes a version; the best by the primary metric challenges.

    With --folds nothing is registered unless --register or --promote asks for it.

    Exit code 3: a metric is too good to be true, so the future has leaked into the features; or
    the gate refuses what --promote asks for.
    """
    from penstock.cluster.jobs import run_job
    from penstock.errors import PenstockError, UserError
    from penstock.settings import load_settings
    from penstock.training.code_state import hand_over, take
    from penstock.training.declarations import load_model

    if estimator and train_all:
        raise UserError("--estimator and --all were both given", allowed="one of them, or neither")
    if and_register and not folds:
        raise UserError("--register was given without --folds", next_step="leave it out")
    settings = load_settings()
    model = load_model(settings, use_case)
    arguments = [use_case]
    for name in estimator or []:
        model.estimator(name)
        arguments += ["--estimator", name]
    if train_all:
        arguments += ["--all"]
    is_training = not folds or and_register or promote
    if dry_run:
        from penstock.cli.cost import render_plans
        from penstock.training.planned_cost import plan

        names = list(model.estimators) if train_all else estimator or [model.default_estimator]
        plans = [plan(settings, model, names, kind="measure")] if folds else []
        if is_training:
            plans.append(plan(settings, model, names, kind="train"))
        emit(plans, as_json=as_json, render=lambda console: render_plans(console, plans))
        return
    code = hand_over(settings, take(settings))
    steps = [("measure", [*arguments, *code])] if folds else []
    if is_training:
        steps += [("train", [*arguments, *(["--promote"] if promote else []), *code])]
    metrics = [metric.name for metric in model.metrics]
    result: dict[str, Any] = {}

    def render(console: Console) -> None:
        if "measured" in result:
            render_folds(console, result)
        if "trained" in result:
            _render_trained(console, result, metrics)

    try:
        for script, told in steps:
            result |= run_job(settings, script, told, request_id=request_id)
    except PenstockError as error:
        result |= error.result
        if result:
            emit(result, as_json=as_json, render=render)
        raise
    emit(result, as_json=as_json, render=render)


def _render_trained(console: Console, result: Mapping[str, Any], metrics: list[str]) -> None:
    from rich.table import Table

    trained = result["trained"]
    table = Table("", *(each["run"]["estimator"] for each in trained))
    table.add_row("version", *(str(each["version"]["version"]) for each in trained))
    for name in metrics:
        table.add_row(name, *(_measured(each["run"], name) for each in trained))
    table.add_row("fit, s", *(f"{each['run']['fit_s']:.1f}" for each in trained))
    console.print(table)
    for each in trained:
        if decided := each["version"].get("facts", {}).get("quantization"):
            told = f"version {each['version']['version']} is {decided}"
            console.print(told, highlight=False, soft_wrap=True)
    last = trained[-1]
    run = last["run"]
    console.print(counts_text(run), soft_wrap=True)
    version = last["version"]["version"]
    is_champion = result.get("promoted") == version
    console.print(
        f"version {version} is the {'champion' if is_champion else 'challenger'}; next: penstock "
        + (f"deploy {run['use_case']}" if is_champion else f"models promote {result['model']}"),
        highlight=False,
        soft_wrap=True,
    )


def _measured(run: Mapping[str, Any], name: str) -> str:
    interval = run.get("intervals", {}).get(name)
    return f"{run['metrics'][name]:.3f}" + (f" ({interval_text(interval)})" if interval else "")


def results(
    use_case: _UseCase,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="The Markdown file to write the model's section of; default: standard output.",
        ),
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show the newest trainings, and the newest folds, beside the published numbers."""
    from penstock.errors import NotFoundError
    from penstock.files import write_whole
    from penstock.settings import load_settings
    from penstock.training.declarations import load_model
    from penstock.training.fold_results import collect_folds, folds_to_markdown
    from penstock.training.results import collect, put_section, to_markdown
    from penstock.training.tracking import Tracking

    settings = load_settings()
    model = load_model(settings, use_case)
    runs = Tracking.open(settings).finished_runs(model.name)
    found, on_folds = collect(model, runs), collect_folds(model, runs)
    if not (found or on_folds):
        raise NotFoundError(
            f"no training of {model.name} has finished yet",
            next_step=f"penstock train {use_case} --all",
        )
    sections = [to_markdown(model, found)] if found else []
    sections += [folds_to_markdown(model, on_folds)] if on_folds else []
    if out is not None:
        page = out.read_text("utf-8") if out.is_file() else ""
        for section in sections:
            page = put_section(page, section)
        write_whole(out, page.encode())

    def render(console: Console) -> None:
        if out is None:
            console.out("\n".join(sections), highlight=False)
        else:
            console.print(f"written: {out}", highlight=False, soft_wrap=True)

    emit([*found, *on_folds], as_json=as_json, render=render)
