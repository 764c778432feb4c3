"""Intervals of metrics: what they would have been on other test rows of the same kind.

The test is drawn again and again with replacement (Efron and Tibshirani, "An introduction to the
bootstrap", 1993, chapter 13: percentile intervals), of each class as many rows as there are. A
resample is a count for each row, never a copy of it: the rows are sorted by score once, and every
metric is a sum or a cumulative sum of counts, many resamples at a time.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from penstock.training.declarations import (
    R2,
    AveragePrecision,
    Bootstrap,
    BrierScore,
    CalibrationError,
    FlaggedShare,
    LogLoss,
    MeanAbsoluteError,
    MeanScore,
    Metric,
    RocAuc,
    RootMeanSquaredError,
    TopGroupsPrecision,
)
from penstock.training.estimators.base import Scores
from penstock.training.validation import DAY_COLUMN, Examples

Counts = npt.NDArray[np.int32]
"""[resamples, rows or units]: how often each was drawn."""
Values = npt.NDArray[np.float64]
"""[resamples]: a metric of each; NaN where a resample lacks a class."""
_COUNTS_AT_ONCE = 2_000_000
_MAX_COUNTS = 200_000_000
_MIN_RESAMPLES = 200


def intervals(
    metrics: Sequence[Metric], test: Examples, scores: Scores, policy: Bootstrap
) -> dict[str, tuple[float, float]]:
    """Give each metric's interval by its name: between them it would be `policy.level` of the time.

    Args:
        metrics: what is measured.
        test: the test rows, with `DAY_COLUMN` in the frame.
        scores: [n], the probability of a positive, or the number that is predicted.
        policy: what is drawn, and how often.
    """
    drawn = resample(metrics, test, scores, policy)
    return {name: bounds(values, policy.level) for name, values in drawn.items()}


def named_bounds(found: Mapping[str, tuple[float, float]]) -> dict[str, float]:
    """Give the intervals' ends as metrics beside theirs: `roc_auc_low`, `roc_auc_high`."""
    ends = ("low", "high")
    return {
        f"{name}_{end}": value
        for name, interval in found.items()
        for end, value in zip(ends, interval, strict=True)
    }


def bounds(values: Values, level: float) -> tuple[float, float]:
    """Give the interval that holds the middle `level` of the values."""
    low, high = np.nanquantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resample(
    metrics: Sequence[Metric],
    test: Examples,
    scores: Scores,
    policy: Bootstrap,
    *,
    stream: int = 0,
) -> dict[str, Values]:
    """Give each metric's values on resamples of the test, by its name.

    Rankings of groups draw groups, since what a group did hangs together; all else draws what the
    policy says.

    Args:
        metrics: what is measured.
        test: the test rows, with `DAY_COLUMN` in the frame.
        scores: [n].
        policy: what is drawn, and how often.
        stream: tests that stand beside each other, as those of folds do, need numbers of their own,
            or their resamples would be alike.
    """
    random = np.random.default_rng([policy.seed, stream])
    ranked = [metric for metric in metrics if isinstance(metric, TopGroupsPrecision)]
    others = [metric for metric in metrics if not isinstance(metric, TopGroupsPrecision)]
    found: dict[str, list[Values]] = {metric.name: [] for metric in metrics}
    rows = SortedRows.of(test, scores)
    if others:
        codes, strata = _drawn_units(rows, test, policy)
        for counts in _draw(strata, rows.num_rows, policy.num_resamples, random):
            of_rows = counts[:, codes] if codes is not None else counts
            for name, values in rows.measure(others, of_rows).items():
                found[name].append(values)
    for metric in ranked:
        groups = RankedGroups.of(metric, test, scores)
        strata = [np.flatnonzero(groups.is_positive == side) for side in (False, True)]
        for counts in _draw(strata, len(groups.is_positive), policy.num_resamples, random):
            found[metric.name].append(groups.measure(counts))
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _draw(
    strata: Sequence[npt.NDArray[np.int64]],
    num_rows: int,
    num_resamples: int,
    random: np.random.Generator,
) -> Iterator[Counts]:
    """Draw of each stratum as often as it has members; some resamples at a time."""
    num_units = sum(len(members) for members in strata)
    # Millions of rows have narrow intervals, which fewer resamples find as well.
    num_resamples = min(num_resamples, max(_MAX_COUNTS // num_rows, _MIN_RESAMPLES))
    at_once = max(_COUNTS_AT_ONCE // num_rows, 1)
    for start in range(0, num_resamples, at_once):
        num = min(at_once, num_resamples - start)
        counts = np.zeros((num, num_units), dtype=np.int32)
        for members in strata:
            size = len(members)
            if not size:
                continue
            drawn = random.integers(0, size, (num, size), dtype=np.int32)
            for resampled, draws in zip(counts, drawn, strict=True):
                resampled[members] = np.bincount(draws, minlength=size)
        yield counts


def _drawn_units(
    rows: "SortedRows", test: Examples, policy: Bootstrap
) -> tuple[npt.NDArray[np.int64] | None, list[npt.NDArray[np.int64]]]:
    """Give each sorted row's unit, or None where rows are drawn; and the strata of the units."""
    if policy.unit == "day":
        days, codes = np.unique(
            test.frame[DAY_COLUMN].to_physical().to_numpy()[rows.order], return_inverse=True
        )
        return codes, [np.arange(len(days))]
    if not rows.is_binary:
        return None, [np.arange(rows.num_rows)]
    return None, [np.flatnonzero(rows.labels == side) for side in (0, 1)]


@dataclass(frozen=True, kw_only=True)
class SortedRows:
    """A test's rows from the highest score to the lowest."""

    order: npt.NDArray[np.int64]
    labels: npt.NDArray[np.float64]
    scores: Scores
    is_binary: bool
    ties: npt.NDArray[np.int64]
    """[n]: the first row of the same score."""
    ends: npt.NDArray[np.int64]
    """[n]: one past the last row of the same score."""

    @classmethod
    def of(cls, test: Examples, scores: Scores) -> "SortedRows":
        """Sort a test's rows."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        return cls(
            order=order,
            labels=test.labels[order].astype(np.float64),
            scores=ordered,
            is_binary=test.labels.dtype == np.int8,
            ties=np.searchsorted(-ordered, -ordered, side="left"),
            ends=np.searchsorted(-ordered, -ordered, side="right"),
        )

    @property
    def num_rows(self) -> int:
        """How many."""
        return len(self.labels)

    def measure(self, metrics: Sequence[Metric], counts: Counts) -> dict[str, Values]:
        """Give each metric's [resamples] values."""
        found: dict[str, Values] = {}
        by_rank = [m for m in metrics if isinstance(m, RocAuc | AveragePrecision)]
        if by_rank:
            ranks = _Ranks.of(self, counts)
            found |= {metric.name: ranks.measure(metric) for metric in by_rank}
        weights = counts.astype(np.float64)
        num_rows = weights.sum(axis=1)
        for metric in metrics:
            if metric not in by_rank:
                sums = weights @ np.stack(self._summed(metric), axis=1)
                found[metric.name] = _finish(metric, sums.T, num_rows)
        return found

    def _summed(self, metric: Metric) -> list[npt.NDArray[np.float64]]:
        """Give the numbers of each row whose sums over a resample decide the metric."""
        labels, scores = self.labels, self.scores
        match metric:
            case LogLoss():
                # Clipped as scikit-learn does, so that a certain miss stays finite.
                epsilon = np.finfo(np.float64).eps
                right = np.where(labels > 0, scores, 1 - scores)
                return [-np.log(np.clip(right, epsilon, 1 - epsilon))]
            case BrierScore() | RootMeanSquaredError():
                return [(scores - labels) ** 2]
            case MeanAbsoluteError():
                return [np.abs(scores - labels)]
            case R2():
                # Around the mean: sums of squares far from zero would cancel.
                around = labels - labels.mean()
                return [(scores - labels) ** 2, around, around**2]
            case MeanScore():
                return [scores]
            case FlaggedShare():
                return [(scores >= metric.threshold).astype(np.float64)]
            case CalibrationError():
                bins = np.minimum((scores * metric.num_bins).astype(int), metric.num_bins - 1)
                gaps = scores - labels
                return [np.where(bins == number, gaps, 0) for number in range(metric.num_bins)]
        raise TypeError(f"{metric} is no sum over rows")


@dataclass(frozen=True, kw_only=True)
class _Ranks:
    """Where each positive row stands in each resample."""

    weights: npt.NDArray[np.float64]
    """[resamples, positives]: how often it was drawn."""
    positives_to_end: npt.NDArray[np.float64]
    """[resamples, positives]: how many positives have its score or a higher one."""
    rows_to_end: npt.NDArray[np.float64]
    negatives_above: npt.NDArray[np.float64]
    """[resamples, positives]: how many negatives have a higher score, those of its own by half."""
    num_positives: Values
    num_negatives: Values

    @classmethod
    def of(cls, rows: SortedRows, counts: Counts) -> "_Ranks":
        places = np.flatnonzero(rows.labels == 1)
        drawn = counts[:, places]
        # One more in front, so that what lies before the first row is zero.
        all_rows = _running(counts)
        positives = _running(drawn)
        before, after = (np.searchsorted(places, at[places]) for at in (rows.ties, rows.ends))
        rows_before, rows_to_end = all_rows[:, rows.ties[places]], all_rows[:, rows.ends[places]]
        above = rows_before - positives[:, before]
        to_end = rows_to_end - positives[:, after]
        num_positives = positives[:, -1].astype(np.float64)
        return cls(
            weights=drawn.astype(np.float64),
            positives_to_end=positives[:, after].astype(np.float64),
            rows_to_end=rows_to_end.astype(np.float64),
            negatives_above=(above + to_end) / 2,
            num_positives=num_positives,
            num_negatives=all_rows[:, -1] - num_positives,
        )

    def measure(self, metric: RocAuc | AveragePrecision) -> Values:
        """Give the [resamples] values."""
        with np.errstate(invalid="ignore", divide="ignore"):
            if isinstance(metric, RocAuc):
                pairs = self.num_positives * self.num_negatives
                return _values(1 - (self.weights * self.negatives_above).sum(axis=1) / pairs)
            # A row that was not drawn weighs nothing, though none may stand before it.
            precisions = self.positives_to_end / np.maximum(self.rows_to_end, 1)
            return _values((self.weights * precisions).sum(axis=1) / self.num_positives)


def _running(counts: Counts) -> Counts:
    running = np.zeros((len(counts), counts.shape[1] + 1), dtype=np.int32)
    np.cumsum(counts, axis=1, out=running[:, 1:])
    return running


def _finish(metric: Metric, sums: npt.NDArray[np.float64], num_rows: Values) -> Values:
    match metric:
        case RootMeanSquaredError():
            return _values(np.sqrt(sums[0] / num_rows))
        case R2():
            return _values(1 - sums[0] / (sums[2] - sums[1] ** 2 / num_rows))
        case CalibrationError():
            return _values(np.abs(sums).sum(axis=0) / num_rows)
    return _values(sums[0] / num_rows)


def _values(values: npt.NDArray[np.float64]) -> Values:
    return np.where(np.isfinite(values), values, np.nan)


@dataclass(frozen=True, kw_only=True)
class RankedGroups:
    """A ranking of groups by day; a group that is drawn twice is two groups that are alike."""

    k: int
    drop_found: bool
    is_positive: npt.NDArray[np.bool_]
    """[groups]: whether it is positive on any day."""
    days: tuple[tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]], ...]
    """Of each day: its groups' numbers, the best-scored first, and their labels."""

    @classmethod
    def of(cls, metric: TopGroupsPrecision, test: Examples, scores: Scores) -> "RankedGroups":
        """Rank the groups of each day of a test."""
        rows = pl.DataFrame(
            {
                "day": test.frame[DAY_COLUMN],
                "group": test.frame[metric.group].rank("dense").cast(pl.Int64) - 1,
                "label": test.labels.astype(np.int32),
                "score": scores,
            }
        )
        by_day = (
            rows.group_by("day", "group")
            .agg(pl.col("label").max(), pl.col("score").max())
            .sort("day", "score", "group", descending=[False, True, False])
        )
        positive = rows.group_by("group").agg(pl.col("label").max()).sort("group")["label"]
        return cls(
            k=metric.k,
            drop_found=metric.drop_found,
            is_positive=positive.to_numpy() > 0,
            days=tuple(
                (day["group"].to_numpy(), day["label"].to_numpy())
                for day in by_day.partition_by("day", maintain_order=True)
            ),
        )

    def measure(self, counts: Counts) -> Values:
        """Give the [resamples] values."""
        left = counts.copy()
        hits = np.zeros(len(counts))
        for groups, labels in self.days:
            there = left[:, groups]
            before = np.cumsum(there, axis=1) - there
            found = np.clip(self.k - before, 0, there) * labels
            hits += found.sum(axis=1)
            if self.drop_found:
                left[:, groups] = there - found
        return hits / (self.k * len(self.days))
