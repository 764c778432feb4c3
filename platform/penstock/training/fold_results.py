"""Renders what was measured on folds beside the published numbers, for the docs."""

from collections.abc import Sequence

from penstock.records import Record
from penstock.training.declarations import Model
from penstock.training.results import HEADING, row
from penstock.training.tracking import ESTIMATOR_TAG, FOLD_ROWS_TAG, FOLDS_TAG, FinishedRun


class FoldsResult(Record):
    """One estimator's newest measurement on folds beside what others published for it."""

    estimator: str
    run_id: str
    metrics: dict[str, float]
    """Means over the folds."""
    deviations: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    published: dict[str, float]
    fit_s: float | None
    """Of one fold."""
    kind: str
    num_folds: int
    level: float
    rows: str
    """Which rows train and which test, in words."""
    respects_time: str
    """That they do, or where they look at the future."""


def collect_folds(model: Model, runs: Sequence[FinishedRun]) -> list[FoldsResult]:
    """Give the newest measurement of each of the model's estimators, as they are declared."""
    newest: dict[str, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if FOLDS_TAG in run.tags:
            newest[run.tags.get(ESTIMATOR_TAG, "")] = run
    published = {result.estimator: result.metrics for result in model.published_on_folds}
    return [
        _result(model, name, newest[name], dict(published.get(name, {})))
        for name in model.estimators
        if name in newest
    ]


def _result(model: Model, name: str, run: FinishedRun, published: dict[str, float]) -> FoldsResult:
    measured = [metric.name for metric in model.metrics if metric.name in run.metrics]
    num_folds = int(run.params["num_folds"])
    fit_s = run.metrics.get("fit_s")

    def beside(end: str) -> dict[str, float]:
        found = {each: run.metrics.get(f"{each}_{end}") for each in measured}
        return {each: value for each, value in found.items() if value is not None}

    lows, highs = beside("low"), beside("high")
    return FoldsResult(
        estimator=name,
        run_id=run.run_id,
        metrics={each: run.metrics[each] for each in measured},
        deviations=beside("deviation"),
        intervals={each: (lows[each], highs[each]) for each in lows if each in highs},
        published=published,
        fit_s=None if fit_s is None else fit_s / num_folds,
        kind=run.params["folds"],
        num_folds=num_folds,
        level=float(run.params["interval_level"]),
        rows=run.tags.get(FOLD_ROWS_TAG, ""),
        respects_time=run.tags[FOLDS_TAG],
    )


def folds_to_markdown(model: Model, results: Sequence[FoldsResult]) -> str:
    """Render the section that `penstock results` writes into a page."""
    named = [metric.name for metric in model.metrics]
    compared = [name for name in named if any(name in result.published for result in results)]
    ordered = [*compared, *(name for name in named if name not in compared)]
    first = results[0]
    lines = [
        f"{HEADING}{model.name} on folds",
        "",
        f"Written by `penstock results {model.use_case} --out docs/results.md` after "
        f"`penstock train {model.use_case} --folds --all`.",
        "",
        f"{first.num_folds} {first.kind} folds ({first.respects_time}): {first.rows}.",
        "",
        f"Each cell: the mean over the folds ± their deviation, [{100 * first.level:g} % interval "
        "of the mean]" + (", (published)." if compared else "."),
        "",
    ]
    if compared and model.published_on_folds_source:
        lines += [f"Published: {model.published_on_folds_source}.", ""]
    lines += [row(["estimator", *ordered, "fit of one fold, s"]), row(["---"] * (2 + len(named)))]
    for result in results:
        fit = "" if result.fit_s is None else f"{result.fit_s:.1f}"
        lines.append(row([result.estimator, *(_cell(result, name) for name in ordered), fit]))
    return "\n".join([*lines, ""])


def _cell(result: FoldsResult, name: str) -> str:
    if name not in result.metrics:
        return "-"
    parts = [f"{result.metrics[name]:.3f}"]
    if name in result.deviations:
        parts.append(f"± {result.deviations[name]:.3f}")
    if name in result.intervals:
        low, high = result.intervals[name]
        parts.append(f"[{low:.3f}, {high:.3f}]")
    if name in result.published:
        parts.append(f"({result.published[name]:.3f})")
    return " ".join(parts)
