"""Moves the replicas' logged predictions into the use case's table `predictions`, each once.

What a shadow scored, which nobody got as an answer, goes to the table `shadow_predictions`.

A segment is one app transaction: after a kill between the commit and the removal of the file, the
next run finds it in the table and only removes the file.
"""

import contextlib
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson
import polars as pl
import pyarrow as pa

from penstock.data import tables
from penstock.data.contracts import load_tables
from penstock.errors import BusyError, DeclarationError, IntegrityError
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.serving.prediction_log import (
    EVENT,
    FEATURES,
    FIELD,
    FINISH,
    FINISHED,
    GIVEN,
    LOCK,
    OPEN,
    SegmentHeader,
    log_folder,
)
from penstock.settings import Settings

SERVED_AT = "served_at"
_WAIT_FOR_LOCK_S = 60.0
_WAIT_FOR_REPLICAS_S = 5.0
_POLL_S = 0.05
_BYTES_PER_COMMIT = 64 << 20


class Collected(Record):
    """What a collection brought into the table."""

    table: str
    num_predictions: int
    num_segments: int
    num_torn_segments: int
    """Segments that a kill had left with a torn end, read up to there."""
    num_silent_replicas: int
    """Replicas that did not finish their segment in time: what it holds comes the next time."""


@dataclass(frozen=True)
class Segment:
    """What a segment's file holds, up to its last whole record batch."""

    header: SegmentHeader | None
    """None: it ends before its header does."""
    rows: pa.Table
    is_torn: bool


def predictions_table(use_case: str) -> str:
    """Name the table that holds a use case's predictions."""
    return f"{use_case}.predictions"


def shadow_table(use_case: str) -> str:
    """Name the table that holds what versions scored that answered nobody."""
    return f"{use_case}.shadow_predictions"


def collect(settings: Settings, use_case: str, progress: Progress = silent) -> Collected:
    """Bring every logged prediction of the use case into its table `predictions`.

    Live replicas are asked to finish what they are writing; of dead ones everything is taken.

    Raises:
        DeclarationError: the use case declares a table of that name itself.
        BusyError: another process has been collecting for a minute.
    """
    declared = load_tables(settings, use_case)
    for table in (predictions_table(use_case), shadow_table(use_case)):
        if table in declared:
            raise DeclarationError(
                f"{use_case} declares the table {table}, which is where its predictions are logged",
                next_step="rename the declared table, or set serving.log_predictions to false",
            )
    root = log_folder(settings, use_case)
    lock = settings.storage_path / "locks" / f"collect-{use_case}"
    counts = {"predictions": 0, "segments": 0, "torn": 0}
    num_silent = 0
    what = f"collecting the predictions of {use_case}"
    with exclusive(lock, what=what, wait_s=_WAIT_FOR_LOCK_S), contextlib.ExitStack() as held:
        dead, alive = _folders(root, held)
        num_silent = _ask_to_finish(alive)
        segments = [file for folder in alive for file in sorted(folder.glob(f"*{FINISHED}"))]
        for folder in dead:
            segments += sorted(f for f in folder.iterdir() if f.suffix in (FINISHED, OPEN))
        for some in _in_parts(segments):
            _commit(settings, use_case, some, counts)
            progress("collect predictions", counts["segments"], len(segments), unit="segments")
        for folder in dead:
            shutil.rmtree(folder, ignore_errors=True)
    return Collected(
        table=predictions_table(use_case),
        num_predictions=counts["predictions"],
        num_segments=counts["segments"],
        num_torn_segments=counts["torn"],
        num_silent_replicas=num_silent,
    )


def _folders(root: Path, held: contextlib.ExitStack) -> tuple[list[Path], list[Path]]:
    """The folders of dead replicas, now locked by us, and those of live ones."""
    dead: list[Path] = []
    alive: list[Path] = []
    if not root.is_dir():
        return dead, alive
    with exclusive(root / LOCK, what="the prediction log", wait_s=_WAIT_FOR_LOCK_S):
        for folder in sorted(path for path in root.iterdir() if path.is_dir()):
            try:
                held.enter_context(exclusive(folder / LOCK, what="the replica's log"))
                dead.append(folder)
            except BusyError:
                alive.append(folder)
    return dead, alive


def _ask_to_finish(alive: Sequence[Path]) -> int:
    """Wait until the live replicas have finished their segments; tell how many did not."""
    requests = [folder / f"{FINISH}{uuid.uuid4().hex}" for folder in alive]
    for request in requests:
        request.touch(mode=0o600)
    deadline_s = time.monotonic() + _WAIT_FOR_REPLICAS_S
    while time.monotonic() < deadline_s:
        if not any(request.exists() for request in requests):
            return 0
        time.sleep(_POLL_S)
    return sum(request.exists() for request in requests)


def _in_parts(segments: Sequence[Path]) -> Iterator[list[Path]]:
    """Together up to so many bytes: a commit each costs more than its rows, all take the memory."""
    part: list[Path] = []
    num_bytes = 0
    for file in segments:
        size = file.stat().st_size
        if part and num_bytes + size > _BYTES_PER_COMMIT:
            yield part
            part, num_bytes = [], 0
        part.append(file)
        num_bytes += size
    if part:
        yield part


def _commit(
    settings: Settings, use_case: str, files: Sequence[Path], counts: dict[str, int]
) -> None:
    by_name = {f"predictions:{file.parent.name}/{file.stem}": file for file in files}
    names = (predictions_table(use_case), shadow_table(use_case))
    known = {
        name
        for table in names
        for name in tables.folder(settings, table).known_transactions(by_name)
    }
    found: dict[str, dict[str, pl.DataFrame]] = {table: {} for table in names}
    for name, file in by_name.items():
        if name in known:
            continue
        segment = read_segment(file)
        counts["segments"] += 1
        counts["torn"] += segment.is_torn
        if segment.header is not None and segment.rows.num_rows:
            table = names[segment.header.is_shadow]
            found[table][name] = to_frame(segment.header, segment.rows)
    for table, frames in found.items():
        if not frames:
            continue
        rows = pl.concat(frames.values())
        tables.commit(
            settings,
            table,
            rows,
            mode="append",
            partition_by="day",
            event_time=SERVED_AT,
            transactions=dict.fromkeys(frames, 1),
            metadata={"num_predictions": str(rows.height)},
        )
        counts["predictions"] += rows.height if table == names[0] else 0
    for file in files:
        file.unlink()


def read_segment(file: Path) -> Segment:
    """Read a segment; a torn end is left out.

    Raises:
        IntegrityError: its header is none of ours.
    """
    batches: list[pa.RecordBatch] = []
    with pa.OSFile(str(file)) as source:
        try:
            reader = pa.ipc.open_stream(source)
        except (pa.ArrowException, OSError, EOFError):
            return Segment(header=None, rows=pa.table({}), is_torn=True)
        is_torn = False
        while True:
            try:
                batch = reader.read_next_batch()
                batch.validate(full=True)
            except StopIteration:
                break
            except (pa.ArrowException, OSError, EOFError):
                is_torn = True
                break
            batches.append(batch)
        try:
            header = SegmentHeader.of(reader.schema)
        except (KeyError, TypeError, ValueError) as error:
            raise IntegrityError(
                f"{file} is no segment of a prediction log: {error}", next_step="move it away"
            ) from None
        return Segment(header, pa.Table.from_batches(batches, reader.schema), is_torn)


def to_frame(header: SegmentHeader, rows: pa.Table) -> pl.DataFrame:
    """Put a segment's rows into the table's columns, which are the same for every model.

    The request's fields, and the features that it brought itself, are one JSON object a row;
    features and the event times of the rows that they came from are lists, whose names stand beside
    them.
    """
    fields = {field.name: rows[f"{FIELD}{field.name}"].to_pylist() for field in header.fields}
    # Segments from before rows could bring features have no such column.
    given = rows[GIVEN].to_pylist() if GIVEN in rows.column_names else [None] * rows.num_rows
    option = orjson.OPT_NAIVE_UTC | orjson.OPT_UTC_Z
    requests = [
        orjson.dumps(
            dict(zip(fields, values, strict=True)) | (orjson.loads(some) if some else {}),
            option=option,
        ).decode()
        for some, *values in zip(given, *fields.values(), strict=True)
    ]
    values = rows[FEATURES].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    num_features = len(header.feature_names)
    features = pl.Series(values).fill_nan(None).reshape((rows.num_rows, num_features))
    times = [pl.Series(pl.from_arrow(rows[f"{EVENT}{view}"])) for view in header.views]
    told = ("prediction_id", "request_id", SERVED_AT, "as_of", "score")
    frame = pl.DataFrame(pl.from_arrow(rows.select(told)))
    return frame.select(
        "prediction_id",
        "request_id",
        pl.lit(header.model).alias("model"),
        pl.lit(header.version, dtype=pl.Int64).alias("model_version"),
        pl.lit(header.digest).alias("model_digest"),
        pl.lit(header.feature_service).alias("feature_service"),
        SERVED_AT,
        "as_of",
        pl.Series("request", requests, dtype=pl.String),
        pl.lit(_names(header.feature_names)).alias("feature_names"),
        features.arr.to_list().alias(FEATURES),
        pl.lit(_names(header.views)).alias("views"),
        _lists(times, rows.num_rows).alias("view_event_times"),
        "score",
    )


def _names(names: Sequence[str]) -> str:
    return orjson.dumps(names).decode()


def _lists(columns: Sequence[pl.Series], height: int) -> pl.Series:
    if not columns:
        return pl.Series([[]] * height, dtype=pl.List(pl.Datetime("us", "UTC")))
    return pl.select(pl.concat_list([c.alias(str(n)) for n, c in enumerate(columns)])).to_series()
