"""Predictions beside what turned out to be true, and how much of it is known yet."""

from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl

from penstock.data.contracts import EVENT_TIME
from penstock.errors import NotFoundError
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.serving.feedback_collection import FEEDBACK, collect_feedback
from penstock.serving.log_collection import collect
from penstock.serving.truth_policy import resolve
from penstock.serving.truths import all_feedback, each_prediction, matched, predictions_with_truth
from penstock.settings import Settings

__all__ = ["DELAY_QUANTILES", "FeedbackReport", "predictions_with_truth", "summarize"]

DELAY_QUANTILES = (0.5, 0.9, 0.99)


class FeedbackReport(Record):
    """What is known of a use case's predictions."""

    use_case: str
    label_delay_s: float
    """As the model declares it."""
    num_feedback: int
    num_repeated: int
    """Rows that say what another one says: counted once."""
    num_unmatched: int
    """Rows whose prediction is not in the table of predictions: not collected yet, not logged, or
    none of ours."""
    num_predictions: int
    """Each id once."""
    num_with_truth: int
    num_due: int
    """Predictions about a time so long ago that their truth should be known."""
    num_due_with_truth: int
    num_contradicted: int
    """Predictions that feedback tells different truths about; the rule chose one."""
    num_late: int
    """Predictions whose truth came later than the declared delay; it counts all the same."""
    delay_s: dict[str, float]
    """Quantiles of the time from what was asked about to when the truth was known."""

    @property
    def coverage(self) -> float | None:
        """Share of predictions with a truth; None: there is no prediction."""
        return self.num_with_truth / self.num_predictions if self.num_predictions else None


def summarize(
    settings: Settings,
    use_case: str,
    *,
    label_delay: timedelta,
    now: datetime | None = None,
    progress: Progress = silent,
) -> FeedbackReport:
    """Collect predictions and feedback, and count what is known.

    Args:
        settings: whose storage.
        use_case: of which predictions.
        label_delay: how late a truth may come, as the model declares it.
        now: what is due is due by then; None: now.
        progress: told of each step.

    Raises:
        BusyError: another process has been collecting for a minute.
    """
    collect(settings, use_case, progress)
    collect_feedback(settings, use_case, progress)
    feedback = all_feedback(settings, use_case)
    try:
        predictions = each_prediction(settings, use_case).select(
            "prediction_id", "as_of", "request"
        )
    except NotFoundError:
        columns = {"prediction_id": pl.String(), "as_of": EVENT_TIME, "request": pl.String()}
        predictions = pl.LazyFrame(schema=pl.Schema(columns))
    progress("match", 0, 1, unit="steps")
    pairs = matched(feedback, predictions).collect()
    truths = resolve(pairs.lazy())
    said = [name for name in FEEDBACK if name not in ("received_at", "source")]
    rows = feedback.select(pl.len(), pl.struct(said).n_unique().alias("distinct")).collect()
    delay = pl.col("known_at") - pl.col("as_of")
    is_due = pl.col("as_of") + label_delay <= (now or datetime.now(UTC))
    has_truth = pl.col("truth").is_not_null()
    counts: dict[str, Any] = (
        predictions.select("prediction_id", "as_of")
        .join(truths, on="prediction_id", how="left")
        .select(
            pl.len().alias("num_predictions"),
            has_truth.sum().alias("num_with_truth"),
            is_due.sum().alias("num_due"),
            (is_due & has_truth).sum().alias("num_due_with_truth"),
            pl.col("is_contradicted").sum().alias("num_contradicted"),
            (delay > label_delay).sum().alias("num_late"),
            *(
                delay.dt.total_microseconds().quantile(q, "linear").alias(str(q))
                for q in DELAY_QUANTILES
            ),
        )
        .collect()
        .row(0, named=True)
    )
    quantiles = {str(q): counts.pop(str(q)) for q in DELAY_QUANTILES}
    num_feedback, num_distinct = rows.row(0)
    return FeedbackReport(
        use_case=use_case,
        label_delay_s=label_delay.total_seconds(),
        num_feedback=num_feedback,
        num_repeated=num_feedback - num_distinct,
        num_unmatched=num_feedback - pairs["row"].n_unique(),
        delay_s={q: us / 1e6 for q, us in quantiles.items() if us is not None},
        **counts,
    )
