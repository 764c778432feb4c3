"""`penstock tune`: searches a model's parameters, and makes the best a version."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit
from penstock.cli.request_ids import RequestId

if TYPE_CHECKING:
    from rich.table import Table

    from penstock.training.search.summary import Tuning

_DEFAULT_TRIALS = 30
_NUM_SHOWN = 10
_RULES = ("asha", "median", "none")


def register(app: typer.Typer) -> None:
    """Add this file's command."""
    app.command("tune")(tune)


def tune(
    use_case: Annotated[str, typer.Argument(help="The use case, a folder of the feature repo.")],
    estimator: Annotated[
        str | None,
        typer.Option("--estimator", "-e", help="Its name in model.py; default: the model's own."),
    ] = None,
    auto: Annotated[
        bool,
        typer.Option(
            "--auto", help="Search families and scaling instead, and end with an ensemble."
        ),
    ] = False,
    trials: Annotated[
        int | None,
        typer.Option(
            "--trials", help=f"How many at most; {_DEFAULT_TRIALS} where nothing is limited."
        ),
    ] = None,
    time: Annotated[
        str | None, typer.Option("--time", help="How long at most, such as 90s, 20m or 1h30m.")
    ] = None,
    cost: Annotated[
        float | None,
        typer.Option("--cost", help="How much money at most, at the prices of the settings."),
    ] = None,
    folds: Annotated[
        int, typer.Option("--folds", help="How many folds of time, all before the model's test.")
    ] = 4,
    stopping: Annotated[
        str,
        typer.Option(
            "--stopping",
            help="Who is given up before the last fold: asha (not among the better half after 1, "
            "2, 4 … folds), median (below the median), none.",
        ),
    ] = "asha",
    population: Annotated[
        int | None,
        typer.Option(
            "--population",
            help="So many nets train side by side, the worst go on as changed copies of the best; "
            "what is found is a schedule. Takes the place of --trials and --stopping.",
        ),
    ] = None,
    generations: Annotated[
        int, typer.Option("--generations", help="How often a population's nets are compared.")
    ] = 5,
    parallel: Annotated[
        int | None,
        typer.Option("--parallel", help="Fits at a time; default: as many as there are cores."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="Of the proposals.")] = 0,
    request_id: RequestId = None,
    as_json: JsonFlag = False,
) -> None:
    """Search the parameters that model.py declares, train with the best, and register it.

    Parameters are chosen on folds of time that end before the model's test begins. Each trial is a
    run in MLflow beneath the search's. Killed at any moment, the same --request-id goes on and
    repeats no fold.
    """
    from penstock.cluster.jobs import run_job
    from penstock.durations import parse_duration
    from penstock.errors import UserError
    from penstock.settings import load_settings
    from penstock.training.code_state import hand_over, take
    from penstock.training.declarations import load_model
    from penstock.training.search.asked import declared_search, population_for

    settings = load_settings()
    model = load_model(settings, use_case)
    if auto and estimator:
        raise UserError("--auto and --estimator were both given", allowed="one of them, or neither")
    if population is not None and (auto or trials is not None or stopping != _RULES[0]):
        raise UserError(
            "--population was given with --auto, --trials or --stopping",
            allowed="--population, --generations, --time and --cost",
        )
    if not auto:
        searches = declared_search(model, estimator)
        if population is not None:
            population_for(*searches, size=population, num_generations=generations, seed=seed)
    for name, value in (("--trials", trials), ("--folds", folds), ("--parallel", parallel)):
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}", allowed="1 or more")
    if stopping not in _RULES:
        raise UserError(f"--stopping is {stopping!r}", allowed=", ".join(_RULES))
    if cost is not None and cost <= 0:
        raise UserError(f"--cost is {cost:g}", allowed="above 0")
    if cost is not None and settings.cost.per_cpu_hour == 0:
        raise UserError(
            "--cost limits nothing where a CPU hour costs 0",
            next_step="set cost.per_cpu_hour in the settings, or limit --trials or --time",
        )
    if (trials, time, cost, population) == (None, None, None, None):
        trials = _DEFAULT_TRIALS
    given = {
        "--estimator": estimator,
        "--trials": trials,
        "--time-s": None if time is None else parse_duration(time),
        "--cost": cost,
        "--folds": folds,
        "--stopping": stopping,
        "--population": population,
        "--generations": generations if population is not None else None,
        "--parallel": parallel,
        "--seed": seed,
    }
    arguments = [use_case, *(["--auto"] if auto else [])]
    for option, each in given.items():
        if each is not None:
            arguments += [option, str(each)]
    arguments += hand_over(settings, take(settings))
    result = run_job(settings, "tune", arguments, request_id=request_id)
    metrics = [metric.name for metric in model.metrics]
    emit(result, as_json=as_json, render=lambda console: _render(console, result, metrics))


def _leaderboard(tuning: "Tuning") -> "Table":
    from rich.table import Table

    table = Table(title="leaderboard")
    for name in ("", tuning.metric, "interval", "fit, s", "one row, us", "made of"):
        table.add_column(name)
    for each in tuning.leaderboard:
        value = each.metrics[tuning.metric]
        table.add_row(
            each.name,
            f"{value:.4f}",
            f"{each.low:.4f} to {each.high:.4f}",
            f"{each.fit_s:.1f}",
            f"{each.latency_us:.0f}",
            each.told,
        )
    return table


def _render(console: Console, result: Mapping[str, Any], metrics: list[str]) -> None:
    from rich.table import Table

    from penstock.training.search.summary import Tuning, parameters_as_text

    tuning = Tuning.model_validate(result["tuning"])
    sign = -1 if tuning.higher_is_better else 1
    done = [t for t in tuning.trials if t.state == "complete" and t.value is not None]
    done.sort(key=lambda trial: (sign * (trial.value or 0.0), trial.number))
    table = Table("trial", "estimator", tuning.metric, "deviation", "fit, s", "values")
    for trial in done[:_NUM_SHOWN]:
        deviation = "" if trial.deviation is None else f"{trial.deviation:.4f}"
        values = parameters_as_text(trial.params)
        cells = (str(trial.number), trial.estimator, f"{trial.value:.4f}", deviation)
        table.add_row(*cells, f"{trial.fit_s:.1f}", values)
    console.print(table)
    if tuning.leaderboard:
        console.print(_leaderboard(tuning))
    states = [trial.state for trial in tuning.trials]
    console.print(
        f"{len(states)} trials, {states.count('complete')} of them on all {len(tuning.folds)} "
        f"{tuning.kind_of_folds} folds, {states.count('stopped')} given up early, "
        f"{states.count('failed')} failed; {tuning.reason}; {tuning.cpu_s:,.0f} CPU seconds, "
        f"{tuning.money:.4f} {tuning.currency}",
        highlight=False,
        soft_wrap=True,
    )
    run, version = result["run"], result["version"]["version"]
    told = ", ".join(f"{name} {run['metrics'][name]:.3f}" for name in metrics)
    console.print(f"on the model's own test: {told}", highlight=False, soft_wrap=True)
    console.print(
        f"to keep it, among the estimators of model.py: {result['declaration']},",
        highlight=False,
        soft_wrap=True,
        markup=False,
    )
    console.print(f"pictures: {tuning.pictures[-1]}", highlight=False, soft_wrap=True)
    if decided := result["version"].get("facts", {}).get("quantization"):
        console.print(f"version {version} is {decided}", highlight=False, soft_wrap=True)
    console.print(
        f"version {version} ({run['estimator']}) is the challenger; next: penstock models promote "
        f"{run['model']}",
        highlight=False,
        soft_wrap=True,
    )
