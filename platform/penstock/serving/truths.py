"""Predictions beside what turned out to be true: the tables of both, joined by one rule."""

from datetime import datetime

import polars as pl

from penstock.data import tables
from penstock.serving.feedback_collection import FEEDBACK
from penstock.serving.feedback_target import feedback_table
from penstock.serving.log_collection import SERVED_AT, predictions_table
from penstock.serving.truth_policy import match, resolve
from penstock.settings import Settings


def predictions_with_truth(
    settings: Settings, use_case: str, *, since: datetime | None = None
) -> pl.LazyFrame:
    """Give every collected prediction, each once, with its truth or null.

    Columns: those of the table `predictions`, and truth, known_at, num_feedback, is_contradicted;
    see `truth_policy` for the rule.

    Args:
        settings: whose storage.
        use_case: of which predictions.
        since: only those that were served then or later; None: all.

    Raises:
        NotFoundError: no prediction was ever collected.
    """
    predictions = each_prediction(settings, use_case, since=since)
    truths = resolve(matched(all_feedback(settings, use_case), predictions))
    return predictions.join(truths, on="prediction_id", how="left")


def each_prediction(
    settings: Settings, use_case: str, *, since: datetime | None = None
) -> pl.LazyFrame:
    """Give every collected prediction once.

    Raises:
        NotFoundError: no prediction was ever collected.
    """
    rows = tables.scan(settings, predictions_table(use_case))
    if since is not None:
        rows = rows.filter(pl.col(SERVED_AT) >= since)
    # One that was answered a second time, because its replica died, stands twice with one id.
    return rows.sort(SERVED_AT).unique("prediction_id", keep="first", maintain_order=True)


def all_feedback(settings: Settings, use_case: str) -> pl.LazyFrame:
    """Give what was told, with a column `row` that numbers it; empty where nothing ever was."""
    table = feedback_table(use_case)
    if not tables.exists(settings, table):
        return FEEDBACK.to_frame().lazy().with_row_index("row")
    return tables.scan(settings, table).with_row_index("row")


def matched(feedback: pl.LazyFrame, predictions: pl.LazyFrame) -> pl.LazyFrame:
    """Give a line for each pair of feedback and a prediction that it is about; see `match`."""
    names = feedback.select(pl.col("entity_names").drop_nulls().unique().sort()).collect()
    return match(feedback, predictions, names["entity_names"].to_list())
