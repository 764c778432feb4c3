"""How the numbers of a training, or of a measurement on folds, are shown."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console


def interval_text(interval: Sequence[float]) -> str:
    """Write an interval: `0.838 to 0.880`."""
    low, high = interval
    return f"{low:.3f} to {high:.3f}"


def render_folds(console: Console, result: Mapping[str, Any]) -> None:
    """Show the measured estimators, one table each, and what the folds are."""
    from rich.table import Table

    runs = result["measured"]
    for run in runs:
        folds = run["folds"]
        names = [f"fold {fold['number']}" for fold in folds]
        level = f"{100 * run['level']:g} % interval"
        table = Table(run["estimator"], "mean", "deviation", level, *names)
        for metric, found in run["metrics"].items():
            deviation = found["deviation"]
            table.add_row(
                metric,
                f"{found['mean']:.3f}",
                "" if deviation is None else f"{deviation:.3f}",
                interval_text((found["low"], found["high"])),
                *(f"{fold['metrics'][metric]:.3f}" for fold in folds),
            )
        fits = [fold["fit_s"] for fold in folds]
        table.add_row("fit, s", f"{sum(fits) / len(fits):.1f}", "", "", *(f"{s:.1f}" for s in fits))
        console.print(table)
    for fold in runs[-1]["folds"]:
        told = f"fold {fold['number']}: trained on {fold['rows']} ({counts_text(fold['counts'])})"
        console.print(told, highlight=False, soft_wrap=True)
    if runs[-1]["remark"]:
        console.print(f"Note: {runs[-1]['remark']}", highlight=False, soft_wrap=True)


def counts_text(counts: Mapping[str, Any]) -> str:
    """Write how many examples there were, and where labels are classes how many positive ones."""
    sides = []
    for side in ("training", "test"):
        positives = counts[f"num_{side}_positives"]
        rows = f"{counts[f'num_{side}_rows']:,} {side} rows"
        sides.append(rows if positives is None else f"{rows}, {positives:,} positive")
    return "; ".join(sides)
