"""Every prediction that a replica gave, with what it was made from, written behind the answers.

    <storage>/predictions/<use case>/<replica>/
        .lock            held for as long as the replica lives
        000001.arrow     a finished segment: an Arrow IPC stream, its header in the schema
        000002.open      the one that is being written
        finish-…         somebody asks for what there is; gone when it is in finished segments

On a request's way there is one append a batch. A thread turns what waits into one record batch a
few times a second, writes it and syncs it, so a kill costs less than a second of the log and a
power cut no more; a torn end is cut off when the segment is read. What the disk can't take in time
is left out and counted. `log_collection` moves segments into the use case's table `predictions`.
"""

import asyncio
import contextlib
import os
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Self

import numpy as np
import orjson
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from penstock.features.online import OnlineRows
from penstock.features.online_plan import FieldSpec
from penstock.files import sync_folder
from penstock.locks import exclusive
from penstock.records import Record
from penstock.serving import http
from penstock.settings import Settings

LOCK, FINISHED, OPEN, FINISH = ".lock", ".arrow", ".open", "finish-"
FIELD, EVENT, FEATURES, GIVEN = "field:", "event:", "features", "given"
_HEADER = b"penstock"
INTERVAL_S = 0.25
"""How often what waits is written: a kill costs that and one write."""
_LOOK_S = 0.02
_SEGMENT_BYTES = 64 << 20
_SEGMENT_S = 3600.0
_MAX_ROWS_WAITING = 100_000
_WAIT_FOR_LOCK_S = 60.0
_TYPES = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "bool": pa.bool_(),
    "string": pa.string(),
    "timestamp": pa.timestamp("us"),
}


class SegmentHeader(Record):
    """What all predictions of a segment have in common."""

    use_case: str
    model: str
    version: int
    digest: str
    feature_service: str
    feature_names: tuple[str, ...]
    fields: tuple[FieldSpec, ...]
    views: tuple[str, ...]
    """The stored views that were read, each with the event time of the row that was found."""
    is_shadow: bool = False
    """Nobody got these answers."""

    def columns(self) -> pa.Schema:
        """Name the columns of a segment: one for each field and view, features in one list."""
        columns = [
            ("prediction_id", pa.string()),
            ("request_id", pa.string()),
            ("served_at", pa.timestamp("us", "UTC")),
            ("as_of", pa.timestamp("us", "UTC")),
            ("score", pa.float64()),
            (FEATURES, pa.list_(pa.float64(), len(self.feature_names))),
            (GIVEN, pa.string()),
            *((f"{FIELD}{field.name}", _TYPES[field.dtype]) for field in self.fields),
            *((f"{EVENT}{view}", pa.timestamp("us", "UTC")) for view in self.views),
        ]
        return pa.schema(columns, metadata={_HEADER: self.model_dump_json().encode()})

    @classmethod
    def of(cls, schema: pa.Schema) -> Self:
        """Read the header out of a segment's schema."""
        return cls.model_validate(orjson.loads(schema.metadata[_HEADER]))


@dataclass(frozen=True, slots=True)
class Asked:
    """A request on its way through the batcher."""

    prediction_id: str
    """Of the whole request; each row adds its number."""
    request_id: str | None
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class AnsweredBatch:
    """Requests that were looked up and scored together; their rows stand one after the other."""

    served_at_us: int
    prediction_ids: list[str]
    """One for each request, and so are the next two."""
    request_ids: list[str | None]
    sizes: list[int]
    looked_up: Sequence[OnlineRows]
    scores: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        served_at_us: int,
        requests: Sequence[Asked],
        looked_up: Sequence[OnlineRows],
        scores: NDArray[np.float64],
    ) -> Self:
        """Keep what the log needs: the rows themselves are freed while they are still at hand."""
        return cls(
            served_at_us,
            prediction_ids=[request.prediction_id for request in requests],
            request_ids=[request.request_id for request in requests],
            sizes=[len(request.rows) for request in requests],
            looked_up=looked_up,
            scores=scores,
        )


def log_folder(settings: Settings, use_case: str) -> Path:
    """Find the folder that holds a folder for each replica of the use case."""
    return settings.storage_path / "predictions" / use_case


def record_batch(
    batches: Sequence[AnsweredBatch], header: SegmentHeader, schema: pa.Schema
) -> pa.RecordBatch:
    """Put batches into columns; a request with a score that is no finite number had no answer."""
    looked_up = [part for batch in batches for part in batch.looked_up]
    sizes = np.concatenate([batch.sizes for batch in batches])
    starts = np.cumsum(sizes) - sizes
    request_of_row = np.repeat(np.arange(len(sizes)), sizes)
    scores = np.concatenate([batch.scores for batch in batches])
    served_us = np.repeat(
        np.array([batch.served_at_us for batch in batches], dtype=np.int64),
        [len(batch.scores) for batch in batches],
    )
    values = np.concatenate([part.values for part in looked_up])
    as_of_us = np.concatenate([part.as_of_us for part in looked_up])
    prediction_ids = pa.array(chain.from_iterable(batch.prediction_ids for batch in batches))
    request_ids = pa.array(chain.from_iterable(batch.request_ids for batch in batches), pa.string())
    number = pa.array(np.arange(len(scores)) - starts[request_of_row]).cast(pa.string())
    columns = [
        pc.binary_join_element_wise(prediction_ids.take(pa.array(request_of_row)), number, "-"),
        request_ids.take(pa.array(request_of_row)),
        _utc(served_us),
        _utc(as_of_us),
        pa.array(scores.astype(np.float64, copy=False)),
        pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), len(header.feature_names)),
        _given(looked_up, len(values)),
    ]
    for field in header.fields:
        given = np.concatenate([part.fields[field.name] for part in looked_up])
        columns.append(pa.array(given, _TYPES[field.dtype]))
    for view in header.views:
        # The event time of an entity that is unknown is numpy's "not a time", and so a null.
        columns.append(_utc(np.concatenate([part.event_us[view] for part in looked_up])))
    batch = pa.RecordBatch.from_arrays(columns, schema=schema)
    finite = np.isfinite(scores)
    if finite.all():
        return batch
    answered = np.repeat(np.logical_and.reduceat(finite, starts), sizes)
    return batch.filter(pa.array(answered))


def _given(looked_up: Sequence[OnlineRows], num_rows: int) -> pa.Array:
    """What each row brought of its features itself, as JSON; null: nothing."""
    if not any(part.given for part in looked_up):
        return pa.nulls(num_rows, pa.string())
    texts: list[str | None] = []
    for part in looked_up:
        for place in range(len(part.values)):
            some = part.given.get(place)
            texts.append(orjson.dumps(some).decode() if some else None)
    return pa.array(texts, pa.string())


def _utc(times_us: NDArray[np.int64]) -> pa.Array:
    return pa.array(times_us.view("datetime64[us]")).view(pa.timestamp("us", "UTC"))


class PredictionLog:
    """Writes one replica's predictions; `put` is for its event loop, the rest is a thread's."""

    def __init__(
        self,
        root: Path,
        header: SegmentHeader,
        *,
        max_bytes: int,
        max_rows_waiting: int = _MAX_ROWS_WAITING,
        segment_bytes: int = _SEGMENT_BYTES,
        segment_s: float = _SEGMENT_S,
        interval_s: float = INTERVAL_S,
    ) -> None:
        """Make a folder of our own and start the thread.

        Args:
            root: the use case's folder; see `log_folder`.
            header: what the predictions have in common.
            max_bytes: finished segments that nobody collects may take so much; then rows are left
                out.
            max_rows_waiting: rows that may wait in memory for the disk; then rows are left out.
            segment_bytes: a segment of this size is finished.
            segment_s: a segment of this age is finished.
            interval_s: how often what waits is written.
        """
        self._header = header
        self._schema = header.columns()
        self._max_bytes = max_bytes
        self._max_rows_waiting = max_rows_waiting
        self._segment_bytes, self._segment_s = segment_bytes, segment_s
        self._interval_s = interval_s
        self._lock = threading.Lock()
        self._waiting: list[AnsweredBatch] = []
        self._num_waiting = self._num_dropped = 0
        self._num_put = self._num_worked = 0
        self._segment: _Segment | None = None
        self._num_segments = 0
        self._has_warned = False
        self._held = contextlib.ExitStack()
        self._folder = _own_folder(root, self._held)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def put(self, batch: AnsweredBatch) -> None:
        """Keep a batch for the thread, unless too much waits."""
        num_rows = len(batch.scores)
        with self._lock:
            if self._num_waiting + num_rows > self._max_rows_waiting:
                self._num_dropped += num_rows
                return
            self._waiting.append(batch)
            self._num_waiting += num_rows
            self._num_put += num_rows

    async def caught_up(self) -> None:
        """Wait until what was put by now is on the disk, or was left out."""
        num_put = self._num_put
        while self._num_worked < num_put and self._thread.is_alive():
            await asyncio.sleep(_LOOK_S)

    def take_num_dropped(self) -> int:
        """How many rows were left out since the last call."""
        with self._lock:
            num_dropped, self._num_dropped = self._num_dropped, 0
        return num_dropped

    def close(self) -> None:
        """Write what waits, finish the segment and let go of the folder."""
        self._closing.set()
        self._thread.join()
        self._held.close()

    def _run(self) -> None:
        while not self._closing.wait(self._interval_s):
            # Listed before the rows are taken: who asks later is answered the next time.
            asking = list(self._folder.glob(f"{FINISH}*"))
            self._work(finish=bool(asking))
            for request in asking:
                request.unlink(missing_ok=True)
        self._work(finish=True)

    def _work(self, *, finish: bool) -> None:
        """Write what waits; whatever goes wrong costs these rows and not the thread."""
        with self._lock:
            batches, self._waiting = self._waiting, []
        num_rows = sum(len(batch.scores) for batch in batches)
        num_lost = num_rows
        try:
            if num_rows:
                num_lost = 0 if self._write(batches) else num_rows
            if self._segment is not None and (finish or self._segment.is_full()):
                self._finish_segment()
        except Exception:  # noqa: BLE001 - answers go on whatever happens to the log
            http.logger.exception("predictions can't be logged in %s", self._folder)
            self._give_up_segment()
        with self._lock:
            self._num_waiting -= num_rows
            self._num_worked += num_rows
            self._num_dropped += num_lost

    def _write(self, batches: Sequence[AnsweredBatch]) -> bool:
        if self._segment is None:
            if self._uncollected_bytes() >= self._max_bytes:
                self._warn_of_full_log()
                return False
            self._num_segments += 1
            self._segment = _Segment(
                self._folder / f"{self._num_segments:06d}{OPEN}",
                self._schema,
                max_bytes=self._segment_bytes,
                max_age_s=self._segment_s,
            )
        self._segment.write(record_batch(batches, self._header, self._schema))
        return True

    def _finish_segment(self) -> None:
        segment, self._segment = self._segment, None
        if segment is not None:
            segment.finish()

    def _give_up_segment(self) -> None:
        """Leave the segment with a torn end: what stands before it is whole."""
        segment, self._segment = self._segment, None
        if segment is not None:
            with contextlib.suppress(OSError, pa.ArrowException):
                segment.leave()

    def _uncollected_bytes(self) -> int:
        found = 0
        for file in self._folder.glob(f"*{FINISHED}"):
            # One that is gone by now was collected.
            with contextlib.suppress(FileNotFoundError):
                found += file.stat().st_size
        return found

    def _warn_of_full_log(self) -> None:
        if not self._has_warned:
            self._has_warned = True
            http.logger.warning(
                "predictions are no longer logged: %s holds %d bytes that nobody collected; run "
                "`penstock features audit %s`",
                *(self._folder, self._max_bytes, self._header.use_case),
            )


def _own_folder(root: Path, held: contextlib.ExitStack) -> Path:
    """Make a folder with a new name and hold its lock; whoever collects finds the dead by that."""
    root.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder = root / uuid.uuid4().hex
    what = "the prediction log"
    # Between the folder and its lock nobody may take it for a dead one's.
    with exclusive(root / LOCK, what=what, wait_s=_WAIT_FOR_LOCK_S):
        folder.mkdir(mode=0o700)
        held.enter_context(exclusive(folder / LOCK, what=what))
    return folder


class _Segment:
    """One file of record batches; each is on the disk when `write` returns."""

    def __init__(self, path: Path, schema: pa.Schema, *, max_bytes: int, max_age_s: float) -> None:
        self._path = path
        self._max_bytes = max_bytes
        self._ends_s = time.monotonic() + max_age_s
        # What callers sent may be about persons.
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._file = os.fdopen(handle, "wb")
        self._writer = pa.ipc.new_stream(self._file, schema)
        sync_folder(path.parent)

    def write(self, batch: pa.RecordBatch) -> None:
        self._writer.write_batch(batch)
        self._sync()

    def is_full(self) -> bool:
        return self._file.tell() >= self._max_bytes or time.monotonic() >= self._ends_s

    def finish(self) -> None:
        self._writer.close()
        self._sync()
        self.leave()

    def leave(self) -> None:
        with contextlib.closing(self._file):
            self._path.rename(self._path.with_suffix(FINISHED))
            sync_folder(self._path.parent)

    def _sync(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())
