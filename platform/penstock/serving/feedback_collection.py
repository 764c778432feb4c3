"""Moves the log of feedback into the use case's table `feedback`, each row once.

A commit's app transaction bears the log's name and how far it was read, so that a mover that was
killed between the commit and the trimming of the log repeats nothing.
"""

from collections.abc import Sequence

import polars as pl

from penstock.data import tables
from penstock.data.contracts import EVENT_TIME
from penstock.data.events.push_log import PushLog
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.serving.feedback_target import feedback_table
from penstock.settings import Settings

FEEDBACK = pl.Schema(
    {
        "prediction_id": pl.String(),
        "entity": pl.String(),
        "entity_names": pl.String(),
        "event_time": EVENT_TIME,
        "truth": pl.Float64(),
        "known_at": EVENT_TIME,
        "received_at": EVENT_TIME,
        "source": pl.String(),
    }
)
"""The table's columns: either `prediction_id`, or `entity` (a JSON object) with its names (a JSON
array, sorted) and `event_time`; the others are null."""
_TIMES = ("event_time", "known_at", "received_at")
_IN_LOG = pl.Schema(
    {f"{k}_us" if k in _TIMES else k: pl.Int64() if k in _TIMES else v for k, v in FEEDBACK.items()}
)
_EVENTS_PER_COMMIT = 200_000
_WAIT_FOR_LOCK_S = 60.0


def collect_feedback(settings: Settings, use_case: str, progress: Progress = silent) -> int:
    """Bring the feedback that was answered over HTTP by now into its table.

    Returns:
        How many rows came.

    Raises:
        BusyError: another process has been moving it for a minute.
    """
    table = feedback_table(use_case)
    lock = settings.storage_path / "locks" / f"collect-{table}"
    what = f"collecting the feedback of {use_case}"
    folder = tables.folder(settings, table)
    log = PushLog.of(settings)
    num_rows = 0
    try:
        with exclusive(lock, what=what, wait_s=_WAIT_FOR_LOCK_S):
            head = log.head(table)
            name = f"feedback:{head.log_id}"
            position = max(head.first_sequence, folder.transaction_number(name) or 0)
            # Up to what was there when it began: where more always comes, it would never end.
            while position < head.next_sequence and (
                found := log.read(table, position, _EVENTS_PER_COMMIT)
            ):
                position = found[-1][0] + 1
                append(settings, use_case, to_frame([event for _, event in found]), name, position)
                log.trim(table, position)
                num_rows += len(found)
                progress("collect feedback", num_rows, head.next_sequence - head.first_sequence)
            # A mover that was killed may have left what the table has.
            log.trim(table, position)
    finally:
        log.close()
    return num_rows


def append(
    settings: Settings, use_case: str, rows: pl.DataFrame, transaction: str, number: int
) -> None:
    """Append rows, unless the table has this transaction with this number or a higher one."""
    tables.commit(
        settings,
        feedback_table(use_case),
        rows,
        mode="append",
        partition_by="month",
        event_time="received_at",
        transactions={transaction: number},
        metadata={"num_feedback": str(rows.height)},
    )


def to_frame(events: Sequence[bytes]) -> pl.DataFrame:
    """Put rows of the log into the table's columns.

    Who does not say when the truth was known says that it is known now.
    """
    rows = pl.read_ndjson(b"\n".join(events), schema=_IN_LOG)
    times = [pl.col(f"{name}_us").cast(pl.Datetime("us")).dt.replace_time_zone("UTC").alias(name)
             for name in _TIMES]  # fmt: skip
    return rows.with_columns(times).select(
        pl.coalesce(name, "received_at").alias(name) if name == "known_at" else name
        for name in FEEDBACK
    )
