import os
import random
from datetime import UTC, datetime, timedelta

import orjson
import polars as pl
import pytest

from payments import (
    NUM_DAYS,
    TRANSACTIONS,
    USE_CASE,
    commit_payments,
    make_payments,
    settings_in,
)
from penstock.data import quarantine, tables
from penstock.data.events import Push
from penstock.errors import BusyError
from penstock.features import streaming
from penstock.features.store import apply
from penstock.features.stream_declarations import Stream, get_stream
from penstock.features.stream_status import stream_status
from penstock.features.streaming import applied_positions, run
from penstock.locks import exclusive
from streams import (
    MemoryLog,
    MemorySource,
    assert_online_is_batch,
    batch_rows,
    messages,
    online_rows,
)

BEFORE = 600
LATER = timedelta(days=NUM_DAYS)


def more_payments(num_payments=400, *, seed=2) -> pl.DataFrame:
    """Payments of the next sixty days, with keys of their own."""
    return make_payments(num_payments, seed=seed).with_columns(
        pl.col("TRANSACTION_ID") + 10_000 * seed, pl.col("TX_DATETIME") + LATER
    )


def stream(settings, log, **options):
    declared = get_stream(settings, USE_CASE)
    return run(settings, declared, log.source, **{"until_idle_s": 0.0} | options)


def num_rows(settings) -> int:
    return tables.latest(settings, TRANSACTIONS).num_rows


class TestStream:
    def test_events_are_in_the_table_once_and_online_rows_are_those_of_batch(self, prepared):
        payments = more_payments()
        log = MemoryLog(one=messages(payments[:250]), two=messages(payments[250:]))
        report = stream(prepared, log)
        assert (report.num_events, report.num_kept, report.num_quarantined) == (400, 400, 0)
        assert num_rows(prepared) == BEFORE + 400
        assert_online_is_batch(prepared)
        status = stream_status(prepared, TRANSACTIONS)
        assert (status.is_running, status.num_flushes) == (False, 1)
        assert status.in_table == status.online == log.committed
        assert (
            log.committed == applied_positions(prepared, TRANSACTIONS) == {"one": 250, "two": 150}
        )

    def test_a_second_stream_goes_on_where_the_first_ended(self, prepared):
        log = MemoryLog(log=messages(more_payments(100)))
        stream(prepared, log)
        log.partitions["log"] += messages(
            more_payments(100, seed=3).with_columns(pl.col("TX_DATETIME") + LATER)
        )
        report = stream(prepared, log)
        assert (report.num_events, report.num_rebuilds) == (100, 0)
        assert num_rows(prepared) == BEFORE + 200
        assert_online_is_batch(prepared)

    def test_late_events_and_events_at_one_time_count(self, prepared):
        payments = more_payments(60).sample(60, shuffle=True, seed=1)
        tie = payments[:20].with_columns(pl.col("TRANSACTION_ID") + 500)
        log = MemoryLog(log=messages(pl.concat([payments, tie])))
        stream(prepared, log)
        assert_online_is_batch(prepared)

    def test_bad_events_go_to_quarantine_with_their_place_and_rule(self, prepared):
        good = messages(more_payments(5))
        ahead = datetime.now(UTC) + timedelta(hours=1)
        odd = orjson.loads(good[0]) | {"TRANSACTION_ID": 1, "TX_DATETIME": ahead.isoformat()}
        values = [good[0], b"{", good[0], orjson.dumps(odd), good[1].replace(b"2", b"x")]
        report = stream(prepared, MemoryLog(log=values))
        assert (report.num_events, report.num_kept, report.num_quarantined) == (5, 1, 4)
        bad = quarantine.read(prepared, TRANSACTIONS).sort("row").collect()
        assert bad.select("source", "row", "rule").rows() == [
            ("log", 1, "json"),
            ("log", 2, "unique"),
            ("log", 3, "clock"),
            ("log", 4, "json"),
        ]
        assert_online_is_batch(prepared)

    def test_only_bad_events_move_the_position_too(self, prepared):
        log = MemoryLog(log=[b"no", b"JSON"])
        stream(prepared, log)
        assert log.committed == {"log": 2}
        assert stream(prepared, log).num_events == 0

    def test_a_payment_that_the_table_has_is_not_counted(self, prepared):
        known = make_payments(BEFORE)[100:103]
        report = stream(prepared, MemoryLog(log=messages(known)))
        assert (report.num_kept, report.num_quarantined) == (0, 3)
        assert_online_is_batch(prepared)

    def test_what_others_write_to_the_table_is_seen(self, prepared):
        log = MemoryLog(log=messages(more_payments(50)))
        stream(prepared, log)
        commit_payments(prepared, more_payments(50, seed=4))
        report = stream(prepared, log)
        assert report.num_rebuilds == 1
        assert_online_is_batch(prepared)

    def test_an_emptied_online_store_is_filled_again(self, prepared):
        log = MemoryLog(log=messages(more_payments(50)))
        stream(prepared, log)
        for part in prepared.storage_path.glob("online_store.db*"):
            part.unlink()
        apply(prepared)
        assert stream(prepared, log).num_rebuilds == 1
        assert_online_is_batch(prepared)

    def test_the_second_stream_of_a_table_is_told_who_runs(self, prepared):
        lock = prepared.storage_path / "locks" / f"stream.{TRANSACTIONS}.lock"
        with exclusive(lock, what="x"):
            assert stream_status(prepared, TRANSACTIONS).is_running
            with pytest.raises(BusyError, match=str(os.getpid())):
                stream(prepared, MemoryLog())

    def test_partitions_are_given_away_only_when_their_events_are_in_the_table(self, prepared):
        log = MemoryLog(log=messages(more_payments(20)))
        source = MemorySource(log)
        seen = []

        def stop() -> bool:
            # Asked before each poll: the second time, events are pending.
            if log.committed or not applied_positions(prepared, TRANSACTIONS).get("log"):
                return bool(log.committed)
            source.before_revoke()
            seen.append(num_rows(prepared))
            return True

        run(prepared, get_stream(prepared, USE_CASE), lambda: source, should_stop=stop)
        assert seen == [BEFORE + 20]
        assert log.committed == {"log": 20}


class TestAnotherUseCase:
    """Text keys, a key of two columns, windows of several delays, and no table before."""

    READINGS = "bike_demand.readings"

    def reading(self, number: int) -> dict:
        at = datetime(2024, 5, 1, tzinfo=UTC) + timedelta(minutes=17 * number)
        return {
            "moment": at.isoformat(),
            "station": f"place-{number % 3}",
            "bikes": number * 7 % 31,
            "clouds": 0,
            "humidity": 80,
            "pressure": 1013.0,
            "temperature": 15.5,
            "wind": 3.0,
            "description": "clear sky",
        }

    def test_the_first_event_makes_the_table(self, tmp_path):
        settings = settings_in(tmp_path)
        apply(settings, ["bike_demand"])
        readings = [orjson.dumps(self.reading(number)) for number in range(1_000)]
        random.Random(3).shuffle(readings)
        log = MemoryLog(log=[*readings, readings[5]])
        declared = Stream(table=self.READINGS, sources=(Push(),))
        report = run(settings, declared, log.source, until_idle_s=0.0)
        assert (report.num_kept, report.num_quarantined) == (1_000, 1)
        assert_online_is_batch(settings, self.READINGS)


class _KilledError(Exception):
    pass


class TestEndsWithoutAFlush:
    """A stream that breaks off leaves what one that is killed leaves."""

    def break_off(self, settings, log, monkeypatch, at_once=40, batches=3):
        num_batches = 0

        def stop() -> bool:
            nonlocal num_batches
            num_batches += 1
            if num_batches > batches:
                raise _KilledError
            return False

        with pytest.raises(_KilledError):
            run(
                settings,
                get_stream(settings, USE_CASE),
                lambda: MemorySource(log, at_once),
                should_stop=stop,
            )

    def test_what_was_counted_is_not_counted_again(self, prepared, monkeypatch):
        log = MemoryLog(log=messages(more_payments(200)))
        stream(prepared, MemoryLog())
        self.break_off(prepared, log, monkeypatch)
        assert num_rows(prepared) == BEFORE
        report = stream(prepared, log)
        assert (report.num_rebuilds, num_rows(prepared)) == (0, BEFORE + 200)
        assert_online_is_batch(prepared)

    def test_without_positions_in_the_states_it_would_be(self, prepared, monkeypatch):
        from penstock.features import stream_state

        log = MemoryLog(log=messages(more_payments(200)))
        stream(prepared, MemoryLog())
        self.break_off(prepared, log, monkeypatch)
        original = stream_state.already_applied
        monkeypatch.setattr(
            stream_state, "already_applied", lambda *given: original(*given) & False
        )
        stream(prepared, log)
        with pytest.raises(AssertionError):
            assert_online_is_batch(prepared)

    def test_what_the_clock_refused_is_refused_again(self, prepared, monkeypatch):
        payments = more_payments(30)
        who = payments[5]["CUSTOMER_ID"].item()
        early = payments.with_columns(
            pl.when(pl.int_range(pl.len()) == 5)
            .then(datetime.now(UTC) + timedelta(minutes=30))
            .otherwise("TX_DATETIME")
            .alias("TX_DATETIME"),
            CUSTOMER_ID=who,
        )
        log = MemoryLog(log=messages(early))
        stream(prepared, MemoryLog())
        self.break_off(prepared, log, monkeypatch)
        # An hour later, as far as the stream can tell, the event is in time.
        now_ns = streaming.time.time_ns() + 3_600 * 10**9
        monkeypatch.setattr(streaming.time, "time_ns", lambda: now_ns)
        stream(prepared, log)
        assert num_rows(prepared) == BEFORE + 29
        assert_online_is_batch(prepared)

    def test_a_key_that_another_partition_takes_the_second_time_is_counted_once(
        self, prepared, monkeypatch
    ):
        payments = more_payments(20)
        # The same payment by two ways that do not agree on the customer.
        other = payments[3:4].with_columns((pl.col("CUSTOMER_ID") + 1) % 40)
        ways = {"one": messages(payments), "two": messages(other)}
        stream(prepared, MemoryLog())
        self.break_off(prepared, MemoryLog(**ways), monkeypatch, at_once=20, batches=1)
        report = stream(prepared, MemoryLog(two=ways["two"], one=ways["one"]))
        assert (report.num_kept, report.num_quarantined, report.num_rebuilds) == (20, 1, 1)
        assert_online_is_batch(prepared)

    def test_the_rows_of_what_was_counted_are_written_again(self, prepared, monkeypatch):
        from penstock.features.stream_online import OnlineSide

        log = MemoryLog(log=messages(more_payments(40)))
        stream(prepared, MemoryLog())
        with monkeypatch.context() as patched:

            def die(*_given, **_options):
                raise _KilledError

            patched.setattr(OnlineSide, "_write", die)
            with pytest.raises(_KilledError):
                stream(prepared, log)
        assert online_rows(prepared) != batch_rows(prepared)
        stream(prepared, log)
        assert_online_is_batch(prepared)


class TestForgottenKeys:
    def test_a_repeated_payment_that_memory_forgot_is_taken_back(self, prepared, monkeypatch):
        from penstock.features import stream_table

        monkeypatch.setattr(stream_table.KeyMemory.__init__, "__kwdefaults__", {"limit": 10})
        old = make_payments(BEFORE)[50:52]
        # One comes as it was, one far newer than all others of its customer.
        moved = old.with_columns(
            pl.Series("TX_DATETIME", [old["TX_DATETIME"][0], old["TX_DATETIME"][1] + 5 * LATER])
        )
        report = stream(prepared, MemoryLog(log=messages(pl.concat([more_payments(30), moved]))))
        assert (report.num_kept, report.num_quarantined) == (30, 2)
        assert num_rows(prepared) == BEFORE + 30
        assert_online_is_batch(prepared)
