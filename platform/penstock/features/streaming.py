"""The loop of a stream: events in, judged, counted, online at once; in the table soon after.

Whatever dies, and whenever: the table says up to where it has each partition, states say up to
where they counted it, and a start opens the source where the table stands.
"""

import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import cast

import orjson
import polars as pl
from feast import FeatureStore
from feast.infra.online_stores.helpers import get_online_store_from_config

from penstock.data import tables
from penstock.data.contracts import Table, get_table
from penstock.data.events import Event, EventSource
from penstock.errors import PenstockError, StoreEmptyError, storage_full
from penstock.features.online_rows import RowStore
from penstock.features.store import open_store
from penstock.features.stream_declarations import Stream, stream_lock
from penstock.features.stream_entries import partition_id
from penstock.features.stream_judge import Judge
from penstock.features.stream_meter import Meter, StreamReport
from penstock.features.stream_online import NEXT, Notes, OnlineSide, notes_of
from penstock.features.stream_rebuild import Rebuild, why_rebuild
from penstock.features.stream_status import applied_positions
from penstock.features.stream_store import open_states, unavailable_errors
from penstock.features.stream_table import FlushOutcome, KeyMemory, Pending, StreamTable
from penstock.features.stream_targets import Targets, check_columns, load_targets
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.settings import Settings

__all__ = ["Session", "StreamReport", "applied_positions", "run"]

MAX_BATCH_EVENTS = 5_000
MAX_PENDING_EVENTS = 50_000
_WAIT_S = 0.2
# How long an online store may be silent before the stream gives up; a restart takes less.
_GIVE_UP_S = 60.0
_RETRY_S = 1.0
# Those who look whether a stream runs hold its lock for a moment.
_LOOK_S = 1.0


def run(
    settings: Settings,
    stream: Stream,
    open_source: Callable[[], EventSource],
    *,
    until_idle_s: float | None = None,
    should_stop: Callable[[], bool] = lambda: False,
    rebuild: bool = False,
    progress: Progress = silent,
) -> StreamReport:
    """Read events until told to stop; then all that was read is in the table.

    Args:
        settings: where the table and the online store are.
        stream: the declaration.
        open_source: makes the source; once more after the online store was away.
        until_idle_s: end after so long without an event; None: never.
        should_stop: asked before each poll.
        rebuild: make states and rows again first, whatever they are.
        progress: hears how it is going.

    Raises:
        BusyError: another stream of the table runs, or has written to it in between.
        UserError: a view was not applied as it is declared now.
        PenstockError: the online store does not answer.
    """
    contract = get_table(settings, stream.table)
    lock = stream_lock(settings, stream.table)
    with exclusive(lock, what=f"the stream of {stream.table}", wait_s=_LOOK_S):
        store = open_store(settings)
        targets = load_targets(settings, store, stream, contract)
        check_columns(targets, contract)
        meter = Meter(stream.table, progress)
        unavailable: tuple[type[Exception], ...] = (
            StoreEmptyError,
            *unavailable_errors(store.config),
        )
        silent_since_s: float | None = None
        while True:
            session = None
            try:
                session = Session(settings, stream, contract, store, targets, meter, progress)
                session.start(open_source(), rebuild=rebuild)
                silent_since_s, rebuild = None, False
                session.loop(until_idle_s, should_stop)
                return meter.report(stream.table, StreamTable(settings, contract).version())
            except unavailable as error:
                # What is not in the table is read again: the start after this is one after a kill.
                now_s = time.monotonic()
                silent_since_s = silent_since_s or now_s
                if now_s - silent_since_s > _GIVE_UP_S:
                    raise _silence(error) from error
                progress("waiting for the online store", 0, unit="events")
                time.sleep(_RETRY_S)
            finally:
                if session is not None:
                    session.close()


def _silence(error: Exception) -> PenstockError:
    return storage_full(error) or PenstockError(
        f"the online store does not answer: {error}",
        next_step="bring it back and start the stream again; nothing is lost",
    )


class Session:
    """One life of a stream: what it holds in memory is gone with it, and nothing else is."""

    def __init__(
        self,
        settings: Settings,
        stream: Stream,
        contract: Table,
        store: FeatureStore,
        targets: Targets,
        meter: Meter,
        progress: Progress,
    ) -> None:
        config = store.config
        self._stream = stream
        self._contract = contract
        self._targets = targets
        self._meter = meter
        self._progress = progress
        self._states = open_states(config)
        self._rows = cast(RowStore, get_online_store_from_config(config.online_store))
        self._notes: Notes = notes_of(config, self._states, stream.table)
        self._side = OnlineSide(config, self._rows, self._states, targets)
        self._table = StreamTable(settings, contract)
        folder = tables.folder(settings, stream.table)
        self._folder = folder
        self._rebuild = Rebuild(
            settings=settings,
            store=store,
            rows=self._rows,
            side=self._side,
            targets=targets,
            folder=folder,
            max_ahead=stream.max_ahead,
        )
        self._keys = KeyMemory(contract)
        self._flusher = ThreadPoolExecutor(1, thread_name_prefix="flush")
        self._in_flight: Future[FlushOutcome] | None = None
        self._pending = Pending()
        self._source: EventSource | None = None
        self._positions: dict[str, int] = {}
        self._floors: dict[int, int] = {}
        self._again: list[pl.DataFrame] = []
        self._why_stale: str | None = None
        self._due_s = self._idle_since_s = time.monotonic()
        self._is_closing = False

    def start(self, source: EventSource, *, rebuild: bool = False) -> None:
        """Bring the online store and the table together, and open the source there."""
        landed = self._table.landed()
        marker = self._notes.read("marker")
        is_ours = marker.get("version") is not None and self._table.is_ours(
            marker["version"], max_flush=landed.flush
        )
        reason = why_rebuild(marker, self._targets.digest, landed, is_ours=is_ours)
        if rebuild:
            reason = "asked for"
        self._table.clear()
        self._flush_number = landed.flush
        self._version = landed.version
        self._generation = int(marker.get("generation", 0))
        self._know(landed.positions)
        self._positions = dict(landed.positions)
        if reason is None:
            self._keys.seed(self._folder)
            rejected = self._notes.read("rejected").get("events", [])
            reached = self._notes.read("reached").get("positions", {})
            self._judge = Judge(self._contract, self._keys, rejected=rejected, reached=reached)
            self._judge.forget(landed.positions)
            self._mark(version=landed.version)
        else:
            self._notes.write("marker", {})
            self._make_again(reason)
        # Loads what judging needs, which takes seconds, before there are events that wait for it.
        self._judge.judge([], latest_us=0)
        self._source = source
        source.open(landed.positions, self._before_revoke)
        self._idle_since_s = time.monotonic()
        self._due_s = self._next_due_s()

    def loop(self, until_idle_s: float | None, should_stop: Callable[[], bool]) -> None:
        """Read until told to stop, or until nothing has come for so long; then flush."""
        source = self._open_source
        while not should_stop():
            events = source.poll(MAX_BATCH_EVENTS, _WAIT_S)
            now_s = time.monotonic()
            if events:
                self.take(events)
                self._idle_since_s = time.monotonic()
            elif until_idle_s is not None and now_s - self._idle_since_s >= until_idle_s:
                break
            self._settle(wait=False)
            is_due = now_s >= self._due_s
            if is_due or self._pending.num_read >= MAX_PENDING_EVENTS:
                self._start_flush()
                self._due_s = self._next_due_s()
            if is_due and not self._pending.num_read and self._in_flight is None:
                self._look_around()
            self._mend()
            if self._meter.is_due():
                self._meter.tell(source.lag())
        self.flush()
        self._mend()
        self._meter.tell(source.lag())

    def take(self, events: list[Event]) -> None:
        """Judge the events and bring them online."""
        begun_s = time.monotonic()
        self._check_store()
        latest_us = time.time_ns() // 1_000 + round(self._stream.max_ahead.total_seconds() * 1e6)
        judged = self._judge.judge(events, latest_us=latest_us)
        for event in events:
            self._positions[event.partition] = event.next_offset
        if judged.is_other and self._why_stale is None:
            self._why_stale = "an event was judged otherwise than before"
            self._mark(version=None)
        notes = {self._notes.key("reached"): orjson.dumps({"positions": self._positions})}
        if judged.rejected:
            rejections = self._judge.rejections()
            notes[self._notes.key("rejected")] = orjson.dumps({"events": rejections})
        self._side.apply(judged.kept, notes, generation=self._generation, floors=self._floors)
        self._notes.write("applied", {"positions": self._positions})
        self._pending.kept.append(judged.kept.drop(NEXT))
        self._pending.bad.append(judged.bad)
        self._pending.num_read += len(events)
        self._meter.online(len(events), time.monotonic() - begun_s)

    def flush(self) -> None:
        """Bring all that was read into the table, and wait until it is there."""
        self._start_flush()
        self._settle(wait=True)

    def close(self) -> None:
        """Let go of everything; a flush that is under way ends first."""
        self._is_closing = True
        self._flusher.shutdown(wait=True)
        if self._source is not None:
            self._source.close()
        self._rows.disconnect()
        self._states.close()

    @property
    def _open_source(self) -> EventSource:
        assert self._source is not None  # noqa: S101  # ours: start() comes first
        return self._source

    def _next_due_s(self) -> float:
        return time.monotonic() + self._stream.flush_interval.total_seconds()

    def _before_revoke(self) -> None:
        # A source that is closed gives its partitions back too; what is pending then is read again.
        if not self._is_closing:
            self.flush()

    def _start_flush(self) -> None:
        """Hand what is pending to the flusher; one flush is under way at a time."""
        if not self._pending.num_read:
            return
        self._settle(wait=True)
        self._flush_number += 1
        pending, self._pending = self._pending, Pending()
        pending.positions = dict(self._positions)
        # Before the table may have it: a store that lost what came before lacks this too.
        self._mark(version=self._marked, durable=True)
        self._in_flight = self._flusher.submit(
            self._table.flush, pending, self._flush_number, keys=self._keys
        )

    def _settle(self, *, wait: bool) -> None:
        """Take what came of the flush that is under way."""
        if self._in_flight is None or not (wait or self._in_flight.done()):
            return
        outcome = self._in_flight.result()
        self._in_flight = None
        flushed = outcome.flushed
        self._meter.flushed(flushed)
        self._keys.landed(outcome.before, flushed.version)
        self._know(flushed.positions)
        self._judge.forget(flushed.positions)
        if outcome.before != self._version:
            self._why_stale = self._why_stale or "somebody else wrote to the table"
        if outcome.again.height:
            self._again.append(outcome.again)
        self._version = flushed.version
        if self._why_stale is None and not self._again:
            self._mark(version=flushed.version)
        self._open_source.commit(flushed.positions)

    def _look_around(self) -> None:
        """Notice, while nothing comes, what others did to the table and the online store."""
        self._check_store()
        if self._table.version() != self._version:
            self._why_stale = self._why_stale or "somebody else wrote to the table"

    def _mend(self) -> None:
        """Make states again where they are not those of the table."""
        if self._why_stale is None and not self._again:
            return
        # States of a version and its positions belong together: nothing may be pending.
        self.flush()
        if self._why_stale is not None:
            self._make_again(self._why_stale)
        else:
            version = self._table.version()
            for rows in self._again:
                self._rebuild.some_entities(version, rows, generation=self._generation)
            self._again.clear()
            self._mark(version=self._version)

    def _make_again(self, reason: str) -> None:
        self._progress(f"make states again: {reason}", 0, unit="events")
        self._mark(version=None)
        version = self._table.version()
        self._generation += 1
        self._rebuild.all_entities(version, generation=self._generation, progress=self._progress)
        # No state has a position now, so nothing is to be remembered of what was judged.
        self._judge = Judge(self._contract, self._keys)
        self._keys.seed(self._folder)
        for name in ("rejected", "reached"):
            self._notes.write(name, {})
        self._notes.write("applied", {"positions": self._positions})
        self._version = version
        self._why_stale = None
        self._again.clear()
        self._mark(version=version, durable=True)
        self._meter.num_rebuilds += 1

    def _mark(self, *, version: int | None, durable: bool = False) -> None:
        """Write down which version the states are those of; None: of none."""
        self._marked = version
        marker = {
            "digest": self._targets.digest,
            "version": version,
            "flush": self._flush_number,
            "generation": self._generation,
        }
        if not self._notes.replace("marker", marker, durable=durable):
            raise self._store_is_empty()

    def _check_store(self) -> None:
        """Make sure that the store is the one that was started with, and not a blank one."""
        if not self._notes.read("marker"):
            raise self._store_is_empty()

    def _store_is_empty(self) -> StoreEmptyError:
        return StoreEmptyError(
            f"the online store has lost the states of {self._stream.table}",
            next_step="start the stream again: they are made from the table",
        )

    def _know(self, positions: Mapping[str, int]) -> None:
        self._floors = {partition_id(name): position for name, position in positions.items()}
