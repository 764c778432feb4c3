"""Renders our numbers beside the published ones, as a table for people and for the docs."""

import re
from collections.abc import Mapping, Sequence
from datetime import timedelta

from penstock.records import Record
from penstock.training.declarations import Model, PublishedResult, RollingTimeSplit
from penstock.training.tracking import BASELINE, ESTIMATOR_TAG, FOLDS_TAG, FinishedRun

HEADING = "# Results: "
"""Begins each section of the page."""


class Result(Record):
    """One estimator's newest run beside what others published for it."""

    estimator: str
    run_id: str
    metrics: dict[str, float]
    published: dict[str, float]
    baseline: dict[str, float]
    """What the model's baseline reached on the same rows."""
    falls_short: tuple[str, ...]
    """The metrics that are further below the published ones than the model's tolerance."""
    fit_s: float | None
    num_training_rows: int
    num_training_positives: int | None
    """None where labels are numbers."""
    num_test_rows: int
    num_test_positives: int | None


def collect(model: Model, runs: Sequence[FinishedRun]) -> list[Result]:
    """Give the newest run of each of the model's estimators, in the order of declaration."""
    newest: dict[str, FinishedRun] = {}
    for run in sorted(runs, key=lambda run: run.started):
        if FOLDS_TAG not in run.tags:
            newest[run.tags.get(ESTIMATOR_TAG, "")] = run
    published = {result.estimator: result for result in model.published}
    return [
        _result(model, name, newest[name], published.get(name))
        for name in model.estimators
        if name in newest
    ]


def _result(model: Model, name: str, run: FinishedRun, published: PublishedResult | None) -> Result:
    metrics = {m.name: run.metrics[m.name] for m in model.metrics if m.name in run.metrics}
    baseline = {
        name.removeprefix(BASELINE): v
        for name, v in run.metrics.items()
        if name.startswith(BASELINE)
    }
    numbers = dict(published.metrics) if published else {}
    higher_is_better = {metric.name: metric.higher_is_better for metric in model.metrics}
    return Result(
        estimator=name,
        run_id=run.run_id,
        metrics=metrics,
        published=numbers,
        baseline=baseline,
        falls_short=falls_short(
            metrics, numbers, higher_is_better, tolerance=model.published_tolerance
        ),
        fit_s=run.metrics.get("fit_s"),
        **{
            key: int(run.params[key]) if key in run.params else None
            for key in (
                "num_training_rows",
                "num_training_positives",
                "num_test_rows",
                "num_test_positives",
            )
        },
    )


def falls_short(
    ours: Mapping[str, float],
    published: Mapping[str, float],
    higher_is_better: Mapping[str, bool],
    *,
    tolerance: float,
) -> tuple[str, ...]:
    """Name the published metrics that ours misses by more than the tolerance.

    Ours is rounded as published numbers are, to three decimals.
    """
    missed = []
    for name, number in published.items():
        gap = number - round(ours[name], 3) if name in ours else float("inf")
        if not higher_is_better.get(name, True):
            gap = -gap if name in ours else gap
        if gap > tolerance + 1e-9:
            missed.append(name)
    return tuple(missed)


def to_markdown(model: Model, results: Sequence[Result]) -> str:
    """Render the section that `penstock results` writes into a page."""
    named = [m.name for m in model.metrics]
    compared = [n for n in named if any(n in r.published for r in results)]
    others = [n for n in named if n not in compared]
    lines = [
        f"{HEADING}{model.name}",
        "",
        f"Written by `penstock results {model.use_case} --out docs/results.md` after "
        f"`penstock train {model.use_case} --all`.",
        "",
        _protocol(model, results[0]),
        "",
    ]
    if compared and model.published_source:
        lines += [f"Each cell: ours (published). Published: {model.published_source}.", ""]
    lines += [
        row(["estimator", *compared, *others, "fit, s"]),
        row(["---"] * (2 + len(named))),
    ]
    baseline = next((result.baseline for result in results if result.baseline), {})
    if model.baseline and baseline:
        cells = [f"{baseline[n]:.3f}" if n in baseline else "-" for n in (*compared, *others)]
        lines.append(row([f"`{model.baseline}` as it is", *cells, ""]))
    for result in results:
        cells = [_cell(result, name) for name in (*compared, *others)]
        fit = "" if result.fit_s is None else f"{result.fit_s:.1f}"
        lines.append(row([result.estimator, *cells, fit]))
    lines += [""]
    short = [r for r in results if r.falls_short]
    if compared:
        lines += [
            f"Every estimator is within {model.published_tolerance:g} of each published number, "
            "or better."
            if not short
            else "Further than the tolerance from the published numbers: "
            + "; ".join(f"{r.estimator} in {', '.join(r.falls_short)}" for r in short)
            + ".",
            "",
        ]
    return "\n".join(lines)


def put_section(page: str, section: str) -> str:
    """Put a model's section in the place of its former one, or after all others."""
    heading = section.split("\n", 1)[0]
    sections = [part for part in re.split(rf"(?m)^(?={HEADING})", page) if part.strip()]
    headings = [part.split("\n", 1)[0] for part in sections]
    if heading in headings:
        sections[headings.index(heading)] = section
    else:
        sections.append(section)
    return "\n".join(part.rstrip("\n") + "\n" for part in sections)


def _protocol(model: Model, first: Result) -> str:
    policy = model.split
    trained = _num_examples(first.num_training_rows, first.num_training_positives)
    tested = (
        f"ested on {policy.test_start:%Y-%m-%d} up to {policy.test_end:%Y-%m-%d} "
        f"({_num_examples(first.num_test_rows, first.num_test_positives)})"
    )
    late = f"labels known {_span(policy.label_delay)} late"
    if isinstance(policy, RollingTimeSplit):
        every = policy.refit_every
        often = "month" if every == "month" else _span(every)
        return (
            f"T{tested}, {late}; fitted anew for each {often} of the test, on everything from "
            f"{policy.train_start:%Y-%m-%d} whose label was known when it began ({trained} in the "
            "last fit)."
        )
    return (
        f"Trained on {policy.train_start:%Y-%m-%d} up to {policy.train_end:%Y-%m-%d} ({trained}), "
        f"t{tested}; {late}."
    )


def _num_examples(num_rows: int, num_positives: int | None) -> str:
    rows = f"{num_rows:,} rows"
    return rows if num_positives is None else f"{rows}, {num_positives:,} positives"


def _span(span: timedelta) -> str:
    for unit, name in (
        (timedelta(days=1), "days"),
        (timedelta(hours=1), "hours"),
        (timedelta(minutes=1), "minutes"),
    ):
        if span % unit == timedelta(0):
            return f"{span // unit} {name}"
    return f"{span.total_seconds():g} seconds"


def _cell(result: Result, name: str) -> str:
    ours = f"{result.metrics[name]:.3f}" if name in result.metrics else "-"
    return f"{ours} ({result.published[name]:.3f})" if name in result.published else ours


def row(cells: Sequence[str]) -> str:
    """Write a row of a Markdown table."""
    return f"| {' | '.join(cells)} |"
