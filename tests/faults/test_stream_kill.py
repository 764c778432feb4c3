"""Streams that are killed at seeded points, each in a real process, while a file feeds them."""

import os
import random
import signal
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from forks import forks
from payments import NUM_DAYS, TRANSACTIONS, USE_CASE, build_features, make_payments, settings_in
from penstock.data import quarantine, tables
from streams import assert_online_is_batch, messages

BEFORE, NUM_PAYMENTS = 600, 600
NUM_KILLS = 5
EVENTS_PER_BATCH = 20
# Of each life: enough for some batches and a flush, fewer than the events at hand give.
FIRST_STEP, LAST_STEP = 4, 30


def _stream(storage: Path, log: Path, die_at: int, flush_s: float, *, guarded: bool = True) -> None:
    """Stream the log; die by SIGKILL before or after the given write."""
    from penstock.data.events import JsonLinesTail
    from penstock.data.events.opening import open_source
    from penstock.features import stream_online, stream_state, stream_table, streaming
    from penstock.features.sqlite_online_store import RowSqliteOnlineStore
    from penstock.features.stream_declarations import get_stream
    from penstock.features.stream_store import SqliteStates

    num_steps = 0

    def step() -> None:
        nonlocal num_steps
        num_steps += 1
        if num_steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def stepping(owner: type, name: str) -> None:
        original: Callable[..., Any] = getattr(owner, name)

        def stepped(*given: Any, **options: Any) -> Any:
            step()
            result = original(*given, **options)
            step()
            return result

        setattr(owner, name, stepped)

    # Each place where something becomes durable: states and notes, rows, bad rows, the commit.
    stepping(SqliteStates, "write")
    stepping(RowSqliteOnlineStore, "write_rows")
    stepping(stream_table.StreamTable, "_commit")
    stepping(stream_table.quarantine, "add")
    streaming.MAX_BATCH_EVENTS = EVENTS_PER_BATCH
    if not guarded:
        stream_state.already_applied = lambda _stored, given: np.zeros(len(given.owner), bool)
    settings = settings_in(storage)
    stream = replace(get_stream(settings, USE_CASE), flush_interval=timedelta(seconds=flush_s))
    assert stream_online.apply is stream_state.apply
    streaming.run(
        settings,
        stream,
        lambda: open_source(settings, stream.table, [JsonLinesTail(path=log)]),
        until_idle_s=0.5,
    )


def life(storage: Path, log: Path, die_at: int = 0, flush_s: float = 0.2, **options: bool) -> int:
    """Run a stream until it dies or nothing comes; give its exit code."""
    given = (storage, log, die_at, flush_s)
    process = forks.Process(target=_stream, args=given, kwargs=options)
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture
def storage(tmp_path: Path) -> Path:
    build_features(settings_in(tmp_path / "storage"), BEFORE)
    return tmp_path / "storage"


@pytest.fixture
def payments() -> pl.DataFrame:
    """Payments after those in the table, in an order that has late ones among them."""
    later = make_payments(NUM_PAYMENTS, seed=2).with_columns(
        pl.col("TRANSACTION_ID") + 10_000, pl.col("TX_DATETIME") + timedelta(days=NUM_DAYS)
    )
    place = np.arange(NUM_PAYMENTS) + np.random.default_rng(5).normal(0, 15, NUM_PAYMENTS)
    return later[np.argsort(place)]


def append(log: Path, events: list[bytes]) -> None:
    with log.open("ab") as file:
        file.writelines(event + b"\n" for event in events)


class TestKilledStream:
    def test_after_five_kills_each_event_counted_once(self, storage, payments, tmp_path):
        settings = settings_in(storage)
        draw = random.Random(1)
        good = messages(payments)
        log = tmp_path / "payments.jsonl"
        log.touch()
        bad: list[bytes] = []
        for start in range(0, NUM_PAYMENTS, NUM_PAYMENTS // (NUM_KILLS + 1)):
            part = good[start : start + NUM_PAYMENTS // (NUM_KILLS + 1)]
            # One that is broken, one that the table has, one that came just before.
            odd = [b"{", messages(make_payments(BEFORE)[start : start + 1])[0], part[10]]
            bad += odd
            append(log, [*part[:40], *odd, *part[40:]])
            if start + len(part) < NUM_PAYMENTS:
                assert life(storage, log, draw.randint(FIRST_STEP, LAST_STEP)) == -signal.SIGKILL
        assert life(storage, log) == 0
        stored = tables.scan(settings, TRANSACTIONS).collect()
        assert stored["TRANSACTION_ID"].n_unique() == stored.height == BEFORE + NUM_PAYMENTS
        rules = quarantine.read(settings, TRANSACTIONS).collect()["rule"].value_counts()
        assert dict(rules.iter_rows()) == {"json": len(bad) // 3, "unique": 2 * len(bad) // 3}
        assert_online_is_batch(settings)

    def test_with_the_positions_in_the_states_ignored_events_count_twice(
        self, storage, payments, tmp_path
    ):
        log = tmp_path / "payments.jsonl"
        log.touch()
        assert life(storage, log) == 0
        # All of them within the windows of the last.
        append(log, messages(payments[:100]))
        # Nothing is in the table when it dies, and some batches are in the states.
        assert life(storage, log, LAST_STEP, flush_s=60) == -signal.SIGKILL
        assert tables.latest(settings_in(storage), TRANSACTIONS).num_rows == BEFORE
        assert life(storage, log, guarded=False) == 0
        with pytest.raises(AssertionError, match="card_fraud_customer"):
            assert_online_is_batch(settings_in(storage))
