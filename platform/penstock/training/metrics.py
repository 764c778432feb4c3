"""How good scores are: pure functions of labels, scores and, for rankings by day, groups."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl
from sklearn.metrics import (
    average_precision_score,
    brier_score_loss,
    log_loss,
    mean_absolute_error,
    precision_recall_curve,
    r2_score,
    roc_auc_score,
    roc_curve,
    root_mean_squared_error,
)

from penstock.errors import TrainingDataError
from penstock.training.declarations import (
    R2,
    AveragePrecision,
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
from penstock.training.estimators.base import Labels, Scores
from penstock.training.validation import DAY_COLUMN, Examples


def evaluate(metrics: Sequence[Metric], test: Examples, scores: Scores) -> dict[str, float]:
    """Give each metric's value by its name.

    Args:
        metrics: what to measure.
        test: the test rows, with `DAY_COLUMN` in the frame.
        scores: [n], the probability of a positive, or the number that is predicted.

    Raises:
        TrainingDataError: a score is NaN or infinite.
    """
    if not np.isfinite(scores).all():
        raise TrainingDataError(
            f"{int((~np.isfinite(scores)).sum()):,} of {len(scores):,} scores are not finite",
            next_step="lower the learning rate, or look for extreme feature values",
        )
    return {metric.name: _measure(metric, test, scores) for metric in metrics}


def _measure(metric: Metric, test: Examples, scores: Scores) -> float:
    match metric:
        case RocAuc():
            return float(roc_auc_score(test.labels, scores))
        case AveragePrecision():
            return float(average_precision_score(test.labels, scores))
        case LogLoss():
            return float(log_loss(test.labels, scores))
        case BrierScore():
            return float(brier_score_loss(test.labels, scores))
        case CalibrationError():
            return expected_calibration_error(test.labels, scores, num_bins=metric.num_bins)
        case MeanAbsoluteError():
            return float(mean_absolute_error(test.labels, scores))
        case RootMeanSquaredError():
            return float(root_mean_squared_error(test.labels, scores))
        case R2():
            return float(r2_score(test.labels, scores))
        case MeanScore():
            return float(scores.mean())
        case FlaggedShare():
            return float((scores >= metric.threshold).mean())
        case TopGroupsPrecision():
            return top_groups_precision(
                days=test.frame[DAY_COLUMN],
                groups=test.frame[metric.group],
                labels=test.labels,
                scores=scores,
                k=metric.k,
                drop_found=metric.drop_found,
            )


def top_groups_precision(
    *,
    days: pl.Series,
    groups: pl.Series,
    labels: Labels,
    scores: Scores,
    k: int,
    drop_found: bool = True,
) -> float:
    """Give the mean over days of the share of positives among each day's `k` best-scored groups.

    A group's score and label of a day are its highest. With `drop_found`, a positive group that
    was among the k no longer takes part on later days. Equal scores rank by the group's value. A
    day with fewer than k groups is still divided by k. This is card precision@k of the Fraud
    Detection Handbook, `card_precision_top_k`, for any kind of group.
    """
    rows = pl.DataFrame({"day": days, "group": groups, "label": labels, "score": scores})
    by_day = (
        rows.group_by("day", "group")
        .agg(pl.col("label").max(), pl.col("score").max())
        .sort("day", "score", "group", descending=[False, True, False])
    )
    found: set[object] = set()
    shares = []
    for (_day,), ranked in by_day.group_by("day", maintain_order=True):
        candidates = ranked.filter(~pl.col("group").is_in(list(found))) if found else ranked
        top = candidates.head(k)
        hits = top.filter(pl.col("label") == 1)["group"].to_list()
        shares.append(len(hits) / k)
        if drop_found:
            found.update(hits)
    return float(np.mean(shares))


@dataclass(frozen=True, kw_only=True)
class CalibrationBins:
    """Scores against what came true, by bins of equal width; empty bins are left out."""

    mean_scores: Scores
    positive_shares: Scores
    counts: npt.NDArray[np.int64]


def calibration_bins(labels: Labels, scores: Scores, *, num_bins: int) -> CalibrationBins:
    """Bin the scores of [0, 1] into `num_bins` bins of equal width."""
    bins = np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)
    counts = np.bincount(bins, minlength=num_bins)
    used = counts > 0
    sums = np.bincount(bins, weights=scores, minlength=num_bins)
    positives = np.bincount(bins, weights=labels, minlength=num_bins)
    return CalibrationBins(
        mean_scores=sums[used] / counts[used],
        positive_shares=positives[used] / counts[used],
        counts=counts[used],
    )


def expected_calibration_error(labels: Labels, scores: Scores, *, num_bins: int) -> float:
    """Mean distance of score and share of positives over the bins, weighted by their rows.

    Source: Naeini, Cooper, Hauskrecht, "Obtaining well calibrated probabilities using Bayesian
    binning", AAAI 2015.
    """
    bins = calibration_bins(labels, scores, num_bins=num_bins)
    gaps = np.abs(bins.mean_scores - bins.positive_shares)
    return float(np.average(gaps, weights=bins.counts))


@dataclass(frozen=True, kw_only=True)
class Curves:
    """The points of the curves that are drawn."""

    false_positive_rates: Scores
    true_positive_rates: Scores
    precisions: Scores
    recalls: Scores
    calibration: CalibrationBins


def curves(labels: Labels, scores: Scores, *, num_bins: int = 10) -> Curves:
    """Give the ROC, precision-recall and calibration curves."""
    false_positive_rates, true_positive_rates, _ = roc_curve(labels, scores)
    precisions, recalls, _ = precision_recall_curve(labels, scores)
    return Curves(
        false_positive_rates=false_positive_rates,
        true_positive_rates=true_positive_rates,
        precisions=precisions,
        recalls=recalls,
        calibration=calibration_bins(labels, scores, num_bins=num_bins),
    )
