"""Metrics of parts of the test rows: a good mean can hide a part that is served badly."""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.records import Record
from penstock.training.bootstrap import intervals
from penstock.training.declarations import Bootstrap, Metric, Slice
from penstock.training.estimators.base import Scores
from penstock.training.metrics import evaluate
from penstock.training.validation import Examples

_MISSING = "missing"
_REST = "all others"
# Parts are many, and a part's interval is read for its width: to that, fewer resamples do.
_MAX_RESAMPLES = 200


class SliceMetrics(Record):
    """One part of one slice."""

    slice: str
    part: str
    num_rows: int
    num_positives: int | None
    """None where labels are numbers."""
    is_small: bool
    metrics: dict[str, float]
    """Empty where the part has rows of one class only: most metrics do not exist then."""
    interval: tuple[float, float] | None
    """Of the primary metric."""


def measure_slices(
    slices: Sequence[Slice],
    metrics: Sequence[Metric],
    test: Examples,
    scores: Scores,
    *,
    primary_metric: str,
    bootstrap: Bootstrap,
) -> list[SliceMetrics]:
    """Measure each part of each slice, in the order of declaration and of values."""
    primary = [metric for metric in metrics if metric.name == primary_metric]
    num_resamples = min(bootstrap.num_resamples, _MAX_RESAMPLES)
    fewer = bootstrap.model_copy(update={"num_resamples": num_resamples})
    found = []
    for each in slices:
        for part, rows in cut(each, test.frame[each.name]):
            chosen = Examples(
                features=test.features[rows],
                labels=test.labels[rows],
                frame=test.frame.filter(rows),
            )
            is_whole = len(np.unique(chosen.labels)) > 1
            is_binary = primary[0].task == "binary"
            drawn = intervals(primary, chosen, scores[rows], fewer) if is_whole else {}
            found.append(
                SliceMetrics(
                    slice=each.name,
                    part=part,
                    num_rows=chosen.num_rows,
                    num_positives=chosen.num_positives if is_binary else None,
                    is_small=chosen.num_rows < each.min_rows,
                    metrics=evaluate(metrics, chosen, scores[rows]) if is_whole else {},
                    interval=drawn.get(primary_metric),
                )
            )
    return found


def cut(policy: Slice, column: pl.Series) -> Iterator[tuple[str, npt.NDArray[np.bool_]]]:
    """Give each part that has rows by its name: every row is in exactly one of them."""
    if policy.edges:
        values = column.cast(pl.Float64).fill_null(np.nan).to_numpy()
        places = np.searchsorted(policy.edges, values, side="right")
        names = _names(policy.edges)
        is_missing = np.isnan(values)
        parts = [(name, (places == place) & ~is_missing) for place, name in enumerate(names)]
        parts.append((_MISSING, is_missing))
    else:
        if column.dtype.is_float():
            column = column.fill_nan(None)
        counts = column.drop_nulls().value_counts(sort=True, name="n")
        # Equal counts would otherwise come in any order.
        common = counts.sort("n", column.name, descending=[True, False])[column.name]
        kept = common.head(policy.max_values).sort()
        parts = [
            (_text(value), (column == value).fill_null(value=False).to_numpy()) for value in kept
        ]
        others = column.is_not_null() & ~column.is_in(kept.implode())
        parts += [(_REST, others.to_numpy()), (_MISSING, column.is_null().to_numpy())]
    yield from ((name, rows) for name, rows in parts if rows.any())


def _names(edges: Sequence[float]) -> list[str]:
    between = [f"{low:g} to below {high:g}" for low, high in itertools.pairwise(edges)]
    return [f"below {edges[0]:g}", *between, f"{edges[-1]:g} and more"]


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
