"""`penstock cost`: what jobs have taken of Ray, in hours and in money."""

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from penstock.cli.output import JsonFlag, emit

if TYPE_CHECKING:
    from penstock.cluster.spending import By
    from penstock.training.planned_cost import PlannedJob

_KINDS: "tuple[By, ...]" = ("use case", "kind", "model version")


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command("cost")(cost)


def cost(
    use_case: Annotated[
        str | None, typer.Argument(help="Only its jobs; without it, all of them.")
    ] = None,
    month: Annotated[
        str | None, typer.Option(metavar="YYYY-MM", help="Another month than this one (UTC).")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Show what the jobs of a month cost, by use case, kind of job and model version.

    For this month with a forecast and what is left of each budget. Prices and budgets stand in the
    settings, under cost.
    """
    from penstock.cluster.ledger import read_all
    from penstock.cluster.settlement import settle_open_records
    from penstock.cluster.spending import forecast, lines
    from penstock.settings import load_settings
    from penstock.use_cases import use_case_folder

    settings = load_settings()
    if use_case is not None:
        use_case_folder(settings, use_case)
    now = datetime.now(UTC)
    wanted = f"{now:%Y-%m}" if month is None else f"{_month(month):%Y-%m}"
    settle_open_records(settings)
    known = [each for each in read_all(settings) if use_case in (None, each.use_case)]
    chosen = [each for each in known if f"{each.started:%Y-%m}" == wanted]
    prices = settings.cost
    result: dict[str, Any] = {
        "month": wanted,
        "currency": prices.currency,
        "money": sum(each.money(prices) for each in chosen),
        "num_jobs": len(chosen),
        "forecast": forecast(known, prices, now=now) if wanted == f"{now:%Y-%m}" else None,
        "budgets": {
            name: budget
            for name, budget in prices.budgets_per_month.items()
            if use_case in (None, name)
        },
        **{
            kind: [line.model_dump(mode="json") for line in lines(chosen, prices, by=kind)]
            for kind in _KINDS
        },
    }
    emit(result, as_json=as_json, render=lambda console: _render(console, result))


def _month(text: str) -> datetime:
    from penstock.errors import UserError

    try:
        return datetime.strptime(text, "%Y-%m").replace(tzinfo=UTC)
    except ValueError:
        raise UserError(f"{text!r} is no month", allowed="YYYY-MM, for example 2026-11") from None


def _render(console: Console, result: dict[str, Any]) -> None:
    from rich.table import Table

    currency = result["currency"]
    if not result["num_jobs"]:
        console.print(f"No job began in {result['month']}.", highlight=False)
    for kind in _KINDS:
        if not result[kind]:
            continue
        table = Table(kind)
        for column in ("jobs", "CPU h", "GPU h", "GB h", currency):
            table.add_column(column, justify="right")
        for line in result[kind]:
            table.add_row(
                line["name"],
                str(line["num_jobs"]),
                *(f"{line[part]:,.3f}" for part in ("cpu_hours", "gpu_hours", "gb_hours")),
                f"{line['money']:,.4f}",
            )
        console.print(table)
    told = f"{result['month']}: {result['money']:,.4f} {currency}"
    if result["forecast"] is not None:
        told += f" so far, {result['forecast']:,.2f} expected by the end of the month"
    console.print(told, highlight=False, soft_wrap=True)
    spent = {line["name"]: line["money"] for line in result["use case"]}
    for name, budget in result["budgets"].items():
        left = budget - spent.get(name, 0.0)
        console.print(
            f"{name}: {left:,.2f} of {budget:,.2f} {currency} left",
            style="red" if left <= 0 else "",
            highlight=False,
            soft_wrap=True,
        )


def render_plans(console: Console, plans: "list[PlannedJob]") -> None:
    """Show what jobs would take; nothing was started."""
    for each in plans:
        told = f"{each.kind} {each.estimators}: {each.num_rows:,} rows"
        if each.estimate is None:
            told += "; no job like it has ended well yet, so there is no estimate"
        else:
            past = f"{each.estimate.num_past} past job{'s' * (each.estimate.num_past > 1)}"
            told += (
                f"; about {each.estimate.seconds:,.0f} s and "
                f"{each.estimate.money:,.4f} {each.currency}, from {past}"
            )
        if each.budget_left is not None:
            told += f"; {each.budget_left:,.2f} {each.currency} of the month's budget left"
        console.print(told, highlight=False, soft_wrap=True)
    console.print("Nothing was started.", highlight=False)
