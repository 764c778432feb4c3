"""Brings a file of feedback into the use case's table: checked, counted, once, whole or not at all.

The file is held against a contract that is made for its columns, by what ingests raw tables; see
docs/data.md for what is refused whole and what goes to quarantine.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson
import pandera.polars as pa
import polars as pl
import pyarrow as arrow

from penstock.data import quarantine, tables
from penstock.data.contracts import EVENT_TIME, Table
from penstock.data.ingest import SourceReport, landing, refusal
from penstock.data.source_kinds import FileSource
from penstock.data.sources import inspect
from penstock.data.staging import StagedUnit, read_frames, stage, staging_folder
from penstock.errors import DataError, UserError
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.serving.feedback_bodies import CLOCK_TOLERANCE, MAX_ID_BYTES
from penstock.serving.feedback_collection import FEEDBACK
from penstock.serving.feedback_target import FeedbackTarget, feedback_table
from penstock.settings import Settings

_FIELD_TYPES = {"int64": pl.Int64, "string": pl.String, "bool": pl.Boolean}


class FeedbackColumns(Record):
    """Which columns of a file say what."""

    truth: str = "truth"
    prediction_id: str = "prediction_id"
    """Looked at where no entity is named."""
    entity: tuple[str, ...] = ()
    """Fields of the request that name the entity; the file's columns have the same names."""
    event_time: str = "event_time"
    """Looked at where an entity is named."""
    known_at: str | None = None
    """None: the truth is known when the file is ingested."""


class _FileContract(Table):
    """A contract that need not have an event time: truths by prediction id have none."""

    def __post_init__(self) -> None:
        """Nothing to check: nobody but this file declares it."""


def ingest_file(
    settings: Settings,
    target: FeedbackTarget,
    source: FileSource,
    columns: FeedbackColumns,
    progress: Progress = silent,
) -> SourceReport:
    """Check a file and land its good rows in one commit; bad rows go to quarantine.

    The same bytes, read by the same columns, land once.

    Raises:
        DataError: the file is refused as a whole.
        UserError: a column has no part in the model's requests, or stands for two things.
        BusyError: another ingest held the table for an hour.
    """
    now = datetime.now(UTC)
    contract = _contract(target, columns, latest=now + CLOCK_TOLERANCE)
    inspected = inspect(source, 0, contract)
    # The same file may hold two truths, of thirty days and of ninety.
    read_as = f"{inspected.digest} {target.model} {columns.model_dump_json()}"
    digest = hashlib.sha256(read_as.encode()).hexdigest()
    name = quarantine.transaction(digest)
    folder = tables.folder(settings, contract.name)
    report: dict[str, Any] = {"source": source.name, "digest": digest, "broken_rules": {}}
    report["ignored_columns"] = inspected.ignored_columns
    with landing(settings, contract), staging_folder(settings, contract) as staging:
        if folder.known_transactions([name]):
            return SourceReport(**report, status="already")
        staged = []
        for unit in inspected.units:
            staged.append(
                StagedUnit.model_validate(stage(unit, table=contract, folder=str(staging)))
            )
            progress("check the rows", sum(unit.num_read for unit in staged))
        if (reason := refusal(staged, contract)) is not None:
            raise DataError(reason, next_step="nothing of the file was taken")
        num_read, num_kept = (sum(getattr(u, k) for u in staged) for k in ("num_read", "num_kept"))
        counts = _quarantine(settings, contract.name, staged, source.name, digest, now)
        done = SourceReport(
            **report | {"broken_rules": dict(counts)},
            status="ingested",
            num_read=num_read,
            num_kept=num_kept,
            num_quarantined=num_read - num_kept,
        )
        schema = FEEDBACK.to_frame().to_arrow().schema

        def batches() -> Iterator[arrow.RecordBatch]:
            for unit in staged:
                for kept in read_frames(unit.kept_path):
                    rows = _to_feedback(kept, columns, source.path.name, now)
                    yield from rows.to_arrow().cast(schema).to_batches()

        folder.commit(
            arrow.RecordBatchReader.from_batches(schema, batches()),
            mode="append",
            partition_by="month",
            event_time="received_at",
            transactions={name: 1},
            metadata={"ingest": done.model_dump_json()},
        )
        progress("committed", 1, 1, unit="steps")
        return done


def _contract(target: FeedbackTarget, columns: FeedbackColumns, *, latest: datetime) -> Table:
    dtypes = {field.name: _FIELD_TYPES[field.dtype] for field in target.entity_fields}
    unknown = [name for name in columns.entity if name not in dtypes]
    if unknown:
        raise UserError(
            f"{', '.join(unknown)} names no entity of {target.model}", allowed=", ".join(dtypes)
        )
    if columns.entity:
        found = {name: pa.Column(dtypes[name]) for name in columns.entity}
        names = [*columns.entity, columns.event_time]
        found[columns.event_time] = pa.Column(EVENT_TIME)
    else:
        names = [columns.prediction_id]
        has_length = pa.Check.str_length(1, MAX_ID_BYTES)
        found = {columns.prediction_id: pa.Column(pl.String, has_length)}
    # A label of classes is a whole number in files, as in the tables that models learn from.
    is_class = pa.Column(pl.Int64, pa.Check.isin([0, 1]))
    found[columns.truth] = is_class if target.is_binary else pa.Column(pl.Float64)
    names.append(columns.truth)
    if columns.known_at is not None:
        found[columns.known_at] = pa.Column(EVENT_TIME, pa.Check.le(latest))
        names.append(columns.known_at)
    if len(set(names)) < len(names):
        raise UserError(
            f"one column stands for two things: {', '.join(names)}",
            allowed="a column each for what names the prediction, the truth and when it was known",
        )
    return _FileContract(
        name=feedback_table(target.use_case), schema=pa.DataFrameSchema(found), event_time=""
    )


def _quarantine(
    settings: Settings,
    table: str,
    staged: Sequence[StagedUnit],
    source: str,
    digest: str,
    now: datetime,
) -> Counter[str]:
    """Put the bad rows in before the good ones land; see `data.quarantine` for why."""
    counts: Counter[str] = Counter()

    def frames() -> Iterator[pl.DataFrame]:
        for unit in staged:
            for bad in read_frames(unit.bad_path):
                counts.update(f"{column}: {rule}" for column, rule in bad["column", "rule"].rows())
                yield bad.with_columns(
                    pl.lit(source).alias("source"),
                    pl.lit(digest).alias("digest"),
                    pl.lit(now, dtype=EVENT_TIME).alias("ingested_at"),
                )

    quarantine.put(settings, table, frames(), [digest])
    return counts


def _to_feedback(
    kept: pl.DataFrame, columns: FeedbackColumns, source: str, now: datetime
) -> pl.DataFrame:
    """Put checked rows into the table's columns."""
    names = sorted(columns.entity)
    none = pl.lit(None)
    what = {
        "prediction_id": none if names else pl.col(columns.prediction_id),
        "entity": pl.struct(names).struct.json_encode() if names else none,
        "entity_names": pl.lit(orjson.dumps(names).decode()) if names else none,
        "event_time": pl.col(columns.event_time) if names else none,
        "truth": pl.col(columns.truth),
        "known_at": pl.lit(now) if columns.known_at is None else pl.col(columns.known_at),
        "received_at": pl.lit(now),
        "source": pl.lit(source),
    }
    return kept.select(what[name].cast(dtype).alias(name) for name, dtype in FEEDBACK.items())
