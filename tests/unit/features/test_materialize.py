import os
import signal
import sqlite3
import subprocess
import sys
from datetime import UTC, datetime

import polars as pl
import pytest

from payments import (
    SERVICE,
    USE_CASE,
    commit_payments,
    end_of_day,
    make_payments,
    settings_in,
)
from penstock.data import tables
from penstock.errors import BusyError, NotFoundError, UserError
from penstock.features import newest_rows, sqlite_online_store
from penstock.features.build import build
from penstock.features.materialize import materialize
from penstock.features.online import OnlineReader
from penstock.features.sqlite_online_store import RowSqliteOnlineStore
from penstock.features.store import apply, open_store
from penstock.locks import exclusive
from real_data import REPO_ROOT

CUSTOMERS = "card_fraud.customer_windows"


def online_counts(settings, customers, at: datetime) -> list[float]:
    reader = OnlineReader.open(settings, USE_CASE, SERVICE)
    rows = [
        {"CUSTOMER_ID": customer, "TERMINAL_ID": 0, "TX_DATETIME": at, "TX_AMOUNT": 1.0}
        for customer in customers
    ]
    column = reader.feature_names.index("CUSTOMER_ID_NB_TX_30DAY_WINDOW")
    values = reader.read(rows).values[:, column].tolist()
    reader.close()
    return values


def offline_counts(settings, until: datetime) -> dict[int, int]:
    newest = (
        tables.scan(settings, CUSTOMERS)
        .filter(pl.col("TX_DATETIME") <= until)
        .sort("TX_DATETIME")
        .group_by("CUSTOMER_ID")
        .last()
        .collect()
    )
    return dict(zip(newest["CUSTOMER_ID"], newest["CUSTOMER_ID_NB_TX_30DAY_WINDOW"], strict=True))


class TestMaterialize:
    def test_every_entity_has_its_newest_row_up_to_the_end(self, prepared):
        until = end_of_day(30)
        views = materialize(prepared, USE_CASE, until=until)
        expected = offline_counts(prepared, until)
        assert views[0].num_entities == len(expected)
        assert views[0].newest_event <= until
        assert online_counts(prepared, expected, until) == list(expected.values())

    def test_a_source_beyond_the_memory_budget_goes_in_buckets(
        self, prepared, tmp_path, monkeypatch
    ):
        """Rows of one entity stand in several chunks, and the same rows come out."""
        materialize(prepared, USE_CASE)
        with sqlite3.connect(tmp_path / "online_store.db") as connection:
            query = 'SELECT * FROM "penstock_card_fraud_terminal"'
            expected = set(connection.execute(query))
            connection.execute('DELETE FROM "penstock_card_fraud_terminal"')
        connection.close()
        monkeypatch.setattr(newest_rows, "ROWS_PER_CHUNK", 700)
        monkeypatch.setattr(newest_rows, "num_buckets_for", lambda *_, **__: 5)
        heard = []
        views = materialize(
            prepared, USE_CASE, progress=lambda step, *numbers, **_: heard.append((step, numbers))
        )
        with sqlite3.connect(tmp_path / "online_store.db") as connection:
            assert set(connection.execute(query)) == expected
        connection.close()
        assert views[1].num_entities == len(expected) == 60
        assert views[1].newest_event is not None
        assert heard[-1] == ("materialize card_fraud_terminal", (60, 60))

    def test_an_earlier_run_after_a_later_one_leaves_the_newer_rows(self, prepared):
        materialize(prepared, USE_CASE, until=end_of_day(50))
        materialize(prepared, USE_CASE, until=end_of_day(20))
        expected = offline_counts(prepared, end_of_day(50))
        assert online_counts(prepared, expected, end_of_day(50)) == list(expected.values())

    def test_a_late_payment_changes_a_row_that_was_online_already(self, tmp_path):
        payments = make_payments(600)
        late = payments["CUSTOMER_ID"][599]
        mine = payments.filter(pl.col("CUSTOMER_ID") == late)
        forgotten = mine["TRANSACTION_ID"][-2]
        settings = settings_in(tmp_path)
        commit_payments(settings, payments.filter(pl.col("TRANSACTION_ID") != forgotten))
        build(settings, USE_CASE)
        apply(settings)
        materialize(settings, USE_CASE)
        before = online_counts(settings, [late], end_of_day(59))
        commit_payments(settings, payments.filter(pl.col("TRANSACTION_ID") == forgotten))
        build(settings, USE_CASE)
        materialize(settings, USE_CASE)
        assert online_counts(settings, [late], end_of_day(59)) == [before[0] + 1]

    def test_the_watermark_moves_after_all_rows_are_written(self, prepared, monkeypatch):
        monkeypatch.setattr(newest_rows, "_ROWS_PER_BLOCK", 10)
        write, calls = RowSqliteOnlineStore.write_rows, []

        def fail_at_the_second_block(*arguments):
            calls.append(1)
            if len(calls) == 2:
                raise OSError("the disk is full")
            write(*arguments)

        monkeypatch.setattr(RowSqliteOnlineStore, "write_rows", fail_at_the_second_block)
        with pytest.raises(OSError, match="disk is full"):
            materialize(prepared, USE_CASE)
        view = open_store(prepared).get_feature_view("card_fraud_customer")
        assert view.most_recent_end_time is None
        materialize(prepared, USE_CASE, until=end_of_day(40))
        view = open_store(prepared).get_feature_view("card_fraud_customer")
        assert view.most_recent_end_time == end_of_day(40)

    def test_the_registry_holds_one_interval_however_often_it_ran(self, prepared):
        for day in (20, 40, 30):
            materialize(prepared, USE_CASE, until=end_of_day(day))
        view = open_store(prepared).get_feature_view("card_fraud_customer")
        assert [interval[1] for interval in view.materialization_intervals] == [end_of_day(40)]

    def test_progress_counts_rows(self, prepared, monkeypatch):
        monkeypatch.setattr(newest_rows, "_ROWS_PER_BLOCK", 30)
        heard = []
        materialize(
            prepared, USE_CASE, progress=lambda step, done, total, **_: heard.append((done, total))
        )
        assert heard[:3] == [(0, 40), (30, 40), (40, 40)]

    def test_a_second_run_at_once_is_told_who_is_at_it(self, prepared, tmp_path):
        with (
            exclusive(tmp_path / "locks" / f"materialize-{USE_CASE}", what="x"),
            pytest.raises(BusyError, match=f"process {os.getpid()}"),
        ):
            materialize(prepared, USE_CASE)

    def test_views_that_were_not_applied_are_refused(self, tmp_path):
        settings = settings_in(tmp_path)
        commit_payments(settings, make_payments(50))
        build(settings, USE_CASE)
        with pytest.raises(UserError, match="features apply"):
            materialize(settings, USE_CASE)

    def test_tables_that_were_not_built_are_named(self, tmp_path):
        settings = settings_in(tmp_path)
        apply(settings)
        with pytest.raises(NotFoundError, match="customer_windows"):
            materialize(settings, USE_CASE)

    def test_a_run_that_is_killed_is_finished_by_the_next(self, prepared, tmp_path):
        done = subprocess.run(
            [sys.executable, "-c", _KILLED_WHILE_WRITING, str(tmp_path)],
            env=os.environ | {"PYTHONPATH": str(REPO_ROOT / "tests")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == -signal.SIGKILL, done.stderr
        materialize(prepared, USE_CASE, until=datetime(2024, 12, 31, tzinfo=UTC))
        expected = offline_counts(prepared, end_of_day(59))
        assert online_counts(prepared, expected, end_of_day(59)) == list(expected.values())


_KILLED_WHILE_WRITING = """
import os, signal, sys
from pathlib import Path
from payments import USE_CASE, settings_in
from penstock.features import materialize, newest_rows
from penstock.features.sqlite_online_store import RowSqliteOnlineStore

newest_rows._ROWS_PER_BLOCK = 10
write, calls = RowSqliteOnlineStore.write_rows, []

def write_twice_then_die(*arguments):
    calls.append(1)
    if len(calls) == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    write(*arguments)

RowSqliteOnlineStore.write_rows = write_twice_then_die
materialize.materialize(settings_in(Path(sys.argv[1])), USE_CASE)
"""


class TestGuardOff:
    def test_without_the_stores_guard_an_earlier_run_would_win(self, prepared, monkeypatch):
        """Shows that the test of an earlier run after a later one can fail."""
        monkeypatch.setattr(sqlite_online_store, "_ONLY_NEWER", "")
        materialize(prepared, USE_CASE, until=end_of_day(50))
        materialize(prepared, USE_CASE, until=end_of_day(20))
        newest = offline_counts(prepared, end_of_day(50))
        assert online_counts(prepared, newest, end_of_day(50)) != list(newest.values())
