"""What jobs have cost and will: sums, a month's forecast, an estimate. Pure functions."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Literal

from penstock.cluster.ledger import JobCost
from penstock.prices import CostSettings
from penstock.records import Record

_LOOK_BACK = timedelta(days=7)
_NO_USE_CASE = "(none)"


class Line(Record):
    """What one use case, kind of job or model version took."""

    name: str
    num_jobs: int
    cpu_hours: float
    gpu_hours: float
    gb_hours: float
    money: float


class Estimate(Record):
    """What a job would take, from what jobs like it took."""

    num_past: int
    num_rows: int
    seconds: float
    money: float
    basis: Literal["line", "proportion"]
    """line: a fixed part and one by row; proportion: past jobs were all of one size, and more rows
    take as much more."""


By = Literal["use case", "kind", "model version"]


def lines(costs: Sequence[JobCost], prices: CostSettings, *, by: By) -> list[Line]:
    """Sum up, the dearest first. A job that made several versions is shared among them."""
    names: dict[By, Callable[[JobCost], Sequence[str]]] = {
        "use case": lambda cost: [cost.use_case or _NO_USE_CASE],
        "kind": lambda cost: [cost.kind],
        "model version": lambda cost: cost.model_versions,
    }
    sums: dict[str, list[float]] = {}
    for cost in costs:
        found = names[by](cost)
        for name in found:
            share = 1 / len(found)
            usage = cost.usage
            parts = (
                1,
                usage.cpu_s * share / 3600,
                usage.gpu_s * share / 3600,
                usage.memory_gb_s * share / 3600,
                cost.money(prices) * share,
            )
            so_far = sums.setdefault(name, [0.0] * len(parts))
            sums[name] = [a + b for a, b in zip(so_far, parts, strict=True)]
    made = [
        Line(
            name=name,
            num_jobs=int(jobs),
            cpu_hours=cpu,
            gpu_hours=gpu,
            gb_hours=memory,
            money=money,
        )
        for name, (jobs, cpu, gpu, memory, money) in sums.items()
    ]
    return sorted(made, key=lambda line: (-line.money, line.name))


def forecast(costs: Sequence[JobCost], prices: CostSettings, *, now: datetime) -> float:
    """Say what this month will have cost at its end.

    What it has cost so far, and for the time that is left the mean of the last seven days, or of
    the time since the first job where that is shorter, but no less than a day: one job does not
    make a month.
    """
    start = now.astimezone(UTC).replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = (start + timedelta(days=32)).replace(day=1)
    so_far = sum(cost.money(prices) for cost in costs if start <= cost.started <= now)
    recent = [cost for cost in costs if now - _LOOK_BACK <= cost.started <= now]
    if not recent:
        return so_far
    first = min(cost.started for cost in costs)
    span = min(max(now - first, timedelta(days=1)), _LOOK_BACK)
    return so_far + sum(cost.money(prices) for cost in recent) * ((end - now) / span)


def estimate(past: Sequence[JobCost], prices: CostSettings, *, num_rows: int) -> Estimate | None:
    """Say what a job over so many rows would take; None where no job like it has succeeded.

    Where past jobs were of different sizes, time and money are a fixed part and a part by row, by
    least squares; neither part is below zero. Where all were of one size, more rows take as much
    more.
    """
    known = [cost for cost in past if cost.state == "succeeded" and cost.num_rows]
    if not known:
        return None
    sizes = [float(cost.num_rows or 0) for cost in known]
    seconds = _fitted(sizes, [cost.wall_s for cost in known], num_rows)
    money = _fitted(sizes, [cost.money(prices) for cost in known], num_rows)
    return Estimate(
        num_past=len(known),
        num_rows=num_rows,
        seconds=seconds,
        money=money,
        basis="line" if len(set(sizes)) > 1 else "proportion",
    )


def _fitted(sizes: Sequence[float], values: Sequence[float], at: float) -> float:
    mean_size, mean = sum(sizes) / len(sizes), sum(values) / len(values)
    spread = sum((size - mean_size) ** 2 for size in sizes)
    if spread == 0:
        # Of the fixed part nothing is known: fewer rows are not taken to be cheaper.
        return mean * max(at / mean_size, 1.0)
    together = sum((s - mean_size) * (v - mean) for s, v in zip(sizes, values, strict=True))
    slope = max(together / spread, 0.0)
    fixed = mean - slope * mean_size
    if fixed < 0:
        # Through the origin instead.
        squares = sum(size**2 for size in sizes)
        slope = sum(s * v for s, v in zip(sizes, values, strict=True)) / squares
        fixed = 0.0
    return fixed + slope * at
