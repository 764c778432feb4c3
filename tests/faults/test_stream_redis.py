"""A Redis that goes away under a stream, and comes back empty: nothing is lost, nothing is blank."""

from datetime import timedelta
from pathlib import Path

import polars as pl
import pytest

from payments import NUM_DAYS, TRANSACTIONS, USE_CASE, build_features, make_payments, settings_in
from penstock.data import tables
from penstock.errors import PenstockError
from penstock.features import streaming
from penstock.features.stream_declarations import get_stream
from penstock.features.streaming import Session, run
from servers import running_redis
from streams import MemoryLog, MemorySource, assert_online_is_batch, messages

pytestmark = pytest.mark.servers

BEFORE, NUM_PAYMENTS, AT_ONCE = 600, 200, 40


@pytest.fixture
def log() -> MemoryLog:
    payments = make_payments(NUM_PAYMENTS, seed=2).with_columns(
        pl.col("TRANSACTION_ID") + 10_000, pl.col("TX_DATETIME") + timedelta(days=NUM_DAYS)
    )
    return MemoryLog(log=messages(payments))


def in_redis(storage: Path, server):
    return build_features(
        settings_in(storage, online_store="redis", redis=server.connection_string), BEFORE
    )


class TestRedisUnderAStream:
    def lose(self, tmp_path, log, monkeypatch):
        """Stream, and put an empty Redis in the place of the first after two batches."""
        with running_redis(tmp_path / "first") as (server, process):
            settings = in_redis(tmp_path / "storage", server)
            second = running_redis(tmp_path / "second", like=server)
            polls = []
            told = []

            def stop() -> bool:
                polls.append(True)
                if len(polls) == 3:
                    process.kill()
                    process.wait()
                    second.__enter__()
                return False

            try:
                report = run(
                    settings,
                    get_stream(settings, USE_CASE),
                    lambda: MemorySource(log, AT_ONCE),
                    until_idle_s=0.0,
                    should_stop=stop,
                    progress=lambda step, *_given, **_options: told.append(step),
                )
                assert tables.latest(settings, TRANSACTIONS).num_rows == BEFORE + NUM_PAYMENTS
                assert_online_is_batch(settings)
            finally:
                second.__exit__(None, None, None)
        return report, told

    def test_one_that_comes_back_empty_is_filled_again(self, tmp_path, log, monkeypatch):
        report, told = self.lose(tmp_path, log, monkeypatch)
        assert report.num_rebuilds == 2
        assert "make states again: the online store has no states" in told

    def test_without_the_look_at_the_marker_rows_would_be_of_few_events(
        self, tmp_path, log, monkeypatch
    ):
        monkeypatch.setattr(Session, "_check_store", lambda _session: None)
        monkeypatch.setattr(
            streaming.Notes,
            "replace",
            lambda *given, **how: not streaming.Notes.write(*given, **how),
        )
        with pytest.raises(AssertionError):
            self.lose(tmp_path, log, monkeypatch)

    def test_one_that_stays_away_ends_the_stream_with_what_to_do(self, tmp_path, log, monkeypatch):
        monkeypatch.setattr(streaming, "_GIVE_UP_S", 1.0)
        with running_redis(tmp_path / "only") as (server, process):
            settings = in_redis(tmp_path / "storage", server)

            def stop() -> bool:
                process.kill()
                return False

            with pytest.raises(PenstockError, match=r"does not answer.*nothing is lost"):
                run(
                    settings,
                    get_stream(settings, USE_CASE),
                    lambda: MemorySource(log, AT_ONCE),
                    should_stop=stop,
                )
