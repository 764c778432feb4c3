import shutil
import time
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from feast.infra.online_stores.helpers import get_online_store_from_config

from payments import (
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    build_features,
    commit_payments,
    end_of_day,
    make_payments,
    settings_in,
)
from penstock.data import tables
from penstock.errors import BusyError, DeclarationError, NotFoundError, UserError
from penstock.features import entity_keys
from penstock.features.build import build
from penstock.features.declarations import load_feature_objects
from penstock.features.materialize import materialize
from penstock.features.online import OnlineReader
from penstock.features.online_rows import WrittenRows
from penstock.features.store import repo_config
from penstock.features.stream_declarations import get_stream, stream_lock
from penstock.features.streaming import run
from penstock.features.windows import compute
from penstock.locks import exclusive
from penstock.monitoring import comparison, recomputation, skew_events
from penstock.monitoring.skew_audit import audit
from penstock.serving.log_collection import collect
from penstock.serving.prediction_log import (
    AnsweredBatch,
    Asked,
    PredictionLog,
    SegmentHeader,
    log_folder,
)
from penstock.settings import Settings
from streams import MemoryLog, messages

NUM_PAYMENTS = 600
COUNT = "CUSTOMER_ID_NB_TX_7DAY_WINDOW"
AMOUNT = "CUSTOMER_ID_AVG_AMOUNT_7DAY_WINDOW"


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("built")
    build_features(settings_in(storage), NUM_PAYMENTS)
    return storage


@pytest.fixture
def settings(built: Path, tmp_path: Path) -> Settings:
    """600 payments with their features built, and nothing online."""
    shutil.copytree(built, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


@pytest.fixture(scope="module")
def filled(built: Path, tmp_path_factory) -> Path:
    storage = tmp_path_factory.mktemp("filled")
    shutil.copytree(built, storage, dirs_exist_ok=True)
    materialize(settings_in(storage), USE_CASE)
    return storage


@pytest.fixture
def online(filled: Path, tmp_path: Path) -> Settings:
    """The same, all of it online."""
    shutil.copytree(filled, tmp_path, dirs_exist_ok=True)
    return settings_in(tmp_path)


def rows_at(moment: datetime, *customers: int) -> list[dict]:
    return [
        {"CUSTOMER_ID": n, "TERMINAL_ID": n + 1, "TX_DATETIME": moment, "TX_AMOUNT": 10.0 + n}
        for n in customers
    ]


def serve(settings: Settings, rows: list[dict], name: str = "p") -> None:
    """Look rows up and log them, as a replica does."""
    reader = OnlineReader.open(settings, USE_CASE, SERVICE)
    header = SegmentHeader(
        use_case=USE_CASE,
        model=USE_CASE,
        version=1,
        digest="d",
        feature_service=SERVICE,
        feature_names=reader.feature_names,
        fields=reader.request_fields,
        views=reader.view_names,
    )
    log = PredictionLog(log_folder(settings, USE_CASE), header, max_bytes=1 << 30)
    log.put(
        AnsweredBatch.of(
            time.time_ns() // 1_000,
            [Asked(name, "r", rows)],
            [reader.read(rows)],
            np.full(len(rows), 0.5),
        )
    )
    log.close()
    reader.close()


def put_online(settings: Settings, customer: int, at: datetime, **values: float) -> None:
    """Write over the features of a customer's row."""
    config = repo_config(settings)
    store = get_online_store_from_config(config.online_store)
    view = load_feature_objects(settings, USE_CASE).views["card_fraud_customer"]
    features = {feature.name: [values[feature.name]] for feature in view.features}
    key = entity_keys.encode({"CUSTOMER_ID": [customer]})
    row = WrittenRows(
        keys=key, event_us=[int(at.timestamp() * 1e6)], created_us=None, features=features
    )
    store.write_rows(config, view, row)
    store.disconnect()


def newest_row(settings: Settings, customer: int) -> dict:
    rows = tables.scan(settings, "card_fraud.customer_windows")
    return (
        rows.filter(pl.col("CUSTOMER_ID") == customer)
        .sort("TX_DATETIME")
        .collect()
        .row(-1, named=True)
    )


def tamper(settings: Settings, customer: int, **changes: float) -> None:
    """Let the online row hold other values than the table's."""
    row = newest_row(settings, customer)
    at = row.pop("TX_DATETIME")
    del row["CUSTOMER_ID"]
    put_online(settings, customer, at, **{**row, **changes})


class TestAudit:
    def test_what_was_served_after_a_materialization_is_what_training_would_see(self, online):
        serve(online, rows_at(end_of_day(60), *range(40)))
        report = audit(online, USE_CASE)
        assert (report.num_predictions, report.num_cells) == (40, 40 * 15)
        assert report.num_by_reason == {}
        assert report.num_unexplained == 0
        assert [feature.feature for feature in report.features][:1] == ["TX_AMOUNT"]
        assert report.table_versions.keys() == {
            "card_fraud.customer_windows",
            "card_fraud.terminal_windows",
        }

    def test_unknown_and_expired_entities_are_missing_on_both_sides(self, online):
        serve(online, rows_at(end_of_day(60), 10**9) + rows_at(end_of_day(900), 1))
        assert audit(online, USE_CASE).num_by_reason == {}

    def test_what_brought_features_itself_is_not_looked_at(self, online):
        one, other = rows_at(end_of_day(60), 1, 2)
        serve(online, [one | {"CUSTOMER_ID_NB_TX_7DAY_WINDOW": 10**6}, other])
        report = audit(online, USE_CASE)
        assert (report.num_predictions, report.num_given) == (1, 1)
        assert report.num_by_reason == {}

    def test_where_all_did_there_is_nothing_to_look_at(self, online):
        serve(online, [rows_at(end_of_day(60), 1)[0] | {"TX_DURING_NIGHT": 1.0}])
        with pytest.raises(UserError, match="all 1 predictions of the period brought"):
            audit(online, USE_CASE)

    def test_what_was_asked_comes_back_as_it_was(self, online):
        moment = end_of_day(60) + timedelta(microseconds=1)
        rows = rows_at(moment, 1) + rows_at(end_of_day(60), 2**62)
        rows[0]["TX_AMOUNT"] = 0.1 + 0.2
        serve(online, rows)
        collect(online, USE_CASE)
        logged = tables.scan(online, "card_fraud.predictions").sort("prediction_id").collect()
        found, _ = recomputation.Recomputation(online, USE_CASE, SERVICE).read(logged)
        assert found.requests.to_dicts() == rows

    def test_a_row_older_than_the_newest_is_late(self, settings):
        materialize(settings, USE_CASE, until=end_of_day(30))
        serve(settings, rows_at(end_of_day(60), *range(40)))
        report = audit(settings, USE_CASE)
        assert set(report.num_by_reason) == {"late"}
        by_name = {feature.feature: feature for feature in report.features}
        assert by_name["TX_AMOUNT"].num_differing == 0
        assert by_name[COUNT].num_differing > 0
        example = by_name[COUNT].examples[0]
        assert example.reason == "late"
        assert example.why.startswith("the row of 2024-03-")
        assert len(by_name[COUNT].examples) == 3

    def test_an_entity_that_was_not_online_yet_is_late(self, settings):
        materialize(settings, USE_CASE, until=end_of_day(0))
        serve(settings, rows_at(end_of_day(60), *range(40)))
        report = audit(settings, USE_CASE)
        assert set(report.num_by_reason) == {"late"}
        whys = [e.why for feature in report.features for e in feature.examples]
        assert any(why.startswith("no row was online") for why in whys)

    def test_a_row_newer_than_the_request_is_ahead(self, online):
        serve(online, rows_at(end_of_day(30), *range(40)))
        assert set(audit(online, USE_CASE).num_by_reason) == {"ahead"}

    def test_a_value_that_nothing_explains_is_told_with_its_prediction(self, online):
        tamper(online, 3, **{COUNT: 77.0})
        serve(online, rows_at(end_of_day(60), 2, 3, 4), name="request")
        report = audit(online, USE_CASE)
        assert report.num_by_reason == {"unexplained": 1}
        assert report.num_unexplained == 1
        (feature,) = [f for f in report.features if f.num_differing]
        (example,) = feature.examples
        assert (feature.feature, example.prediction_id) == (COUNT, "request-1")
        assert example.served == 77.0
        assert example.recomputed == newest_row(online, 3)[COUNT]
        assert "another value" in example.why

    def test_a_row_that_the_tables_do_not_have_is_unexplained(self, online):
        row = newest_row(online, 3)
        at = row["TX_DATETIME"] + timedelta(seconds=1)
        put_online(online, 3, at, **(row | {COUNT: 77.0}))
        serve(online, rows_at(end_of_day(60), 3))
        report = audit(online, USE_CASE)
        assert report.num_by_reason == {"unexplained": 1}

    def test_a_change_of_a_function_is_unexplained(self, online, monkeypatch):
        serve(online, rows_at(end_of_day(60), 1, 2))
        original = recomputation.ServiceJoin.complete

        def changed(self, frame, stored):
            found = original(self, frame, stored)
            return found | {"TX_AMOUNT": found["TX_AMOUNT"] * 2}

        monkeypatch.setattr(recomputation.ServiceJoin, "complete", changed)
        report = audit(online, USE_CASE)
        assert report.num_by_reason == {"unexplained": 2}
        (feature,) = [f for f in report.features if f.num_differing]
        assert feature.examples[0].why == "made from the request alone"

    def test_an_event_that_came_in_later_is_late_though_the_row_is_the_same(self, online):
        serve(online, rows_at(end_of_day(60), *range(40)))
        newest = newest_row(online, 3)["TX_DATETIME"]
        late = make_payments(1).with_columns(
            TRANSACTION_ID=pl.lit(10**6, pl.Int64),
            TX_DATETIME=pl.lit(newest - timedelta(hours=1)).cast(pl.Datetime("us", "UTC")),
            CUSTOMER_ID=pl.lit(3, pl.Int64),
            TERMINAL_ID=pl.lit(10**6, pl.Int64),
        )
        # Commits are told apart by the millisecond.
        time.sleep(0.01)
        commit_payments(online, late)
        build(online, USE_CASE)
        report = audit(online, USE_CASE)
        assert set(report.num_by_reason) == {"late"}
        assert {f.feature for f in report.features if f.num_differing} <= {
            f"CUSTOMER_ID_{kind}_{days}DAY_WINDOW"
            for kind in ("NB_TX", "AVG_AMOUNT")
            for days in (1, 7, 30)
        }
        assert any("without events" in e.why for f in report.features for e in f.examples)

    def test_a_merged_entitys_window_is_within_the_resolution(self, online, monkeypatch):
        monkeypatch.setattr(skew_events, "EXACT_ENTRIES", 2)
        payments = tables.scan(online, TRANSACTIONS).filter(pl.col("CUSTOMER_ID") == 3).collect()
        newest = newest_row(online, 3)["TX_DATETIME"]
        # One event just before the week's begin, which a merged entry would bring in.
        stray = make_payments(1).with_columns(
            TRANSACTION_ID=pl.lit(10**6, pl.Int64),
            TX_DATETIME=pl.lit(newest - timedelta(days=7, seconds=20)).cast(
                pl.Datetime("us", "UTC")
            ),
            CUSTOMER_ID=pl.lit(3, pl.Int64),
            TERMINAL_ID=pl.lit(10**6, pl.Int64),
        )
        commit_payments(online, stray)
        build(online, USE_CASE)
        assert payments.height > 2
        moved = stray.with_columns(TX_DATETIME=pl.col("TX_DATETIME") + timedelta(seconds=40))
        from card_fraud.feature_tables import customer_windows

        served = compute(pl.concat([payments, moved]), customer_windows.windows)
        row = served.filter(pl.col("TX_DATETIME") == newest).row(0, named=True)
        tamper(online, 3, **{COUNT: row[COUNT], AMOUNT: row[AMOUNT]})
        serve(online, rows_at(end_of_day(60), 3))
        assert audit(online, USE_CASE).num_by_reason == {"resolution": 2}
        monkeypatch.setattr(skew_events, "EXACT_ENTRIES", 1_024)
        assert audit(online, USE_CASE).num_by_reason == {"unexplained": 2}

    def test_a_hot_entity_of_a_real_stream_differs_by_the_resolution_and_nothing_else(
        self, settings, monkeypatch
    ):
        """More events than are kept one by one, and a grid so coarse that it must show."""
        declared = replace(get_stream(settings, USE_CASE), resolution=timedelta(hours=8))
        monkeypatch.setattr(comparison, "load_streams", lambda *_: {TRANSACTIONS: declared})
        hot = make_payments(2_400, seed=5).with_columns(
            pl.col("TRANSACTION_ID") + 10**6,
            pl.col("TX_DATETIME") + timedelta(days=60),
            CUSTOMER_ID=pl.lit(7, pl.Int64),
            TERMINAL_ID=pl.lit(8, pl.Int64),
        )
        log = MemoryLog(log=[])
        for number, part in enumerate(hot.iter_slices(600)):
            log.partitions["log"] += messages(part)
            run(settings, declared, log.source, until_idle_s=0.0)
            serve(settings, rows_at(part["TX_DATETIME"].max(), 7), name=f"p{number}-")
        build(settings, USE_CASE)
        report = audit(settings, USE_CASE)
        assert report.num_predictions == 4
        assert set(report.num_by_reason) == {"resolution"}
        # Without the stated resolution the same differences are a fault.
        monkeypatch.setattr(comparison, "load_streams", lambda *_: {})
        unstated = audit(settings, USE_CASE)
        assert set(unstated.num_by_reason) == {"unexplained"}
        assert unstated.num_unexplained == sum(report.num_by_reason.values())

    def test_only_the_period_asked_for_is_looked_at(self, online):
        serve(online, rows_at(end_of_day(60), 1))
        middle = datetime.now().astimezone()
        serve(online, rows_at(end_of_day(60), 2, 3), name="q")
        assert audit(online, USE_CASE).num_predictions == 3
        assert audit(online, USE_CASE, since=middle).num_predictions == 2
        assert audit(online, USE_CASE, until=middle).num_predictions == 1
        with pytest.raises(UserError, match="no prediction of card_fraud was logged from"):
            audit(online, USE_CASE, since=middle + timedelta(days=1))

    def test_small_parts_give_the_same_report(self, settings, monkeypatch):
        materialize(settings, USE_CASE, until=end_of_day(30))
        for day in (40, 50, 60):
            serve(settings, rows_at(end_of_day(day), *range(40)), name=f"d{day}-")
        whole = audit(settings, USE_CASE)
        monkeypatch.setattr("penstock.monitoring.skew_audit._ROWS_PER_PART", 7)
        parts = audit(settings, USE_CASE)
        assert parts.num_by_reason == whole.num_by_reason
        assert [f.num_by_reason for f in parts.features] == [
            f.num_by_reason for f in whole.features
        ]


class TestWhatTheTablesDoNotHaveYet:
    def test_predictions_after_the_last_build_wait_while_earlier_ones_are_looked_at(
        self, online, monkeypatch
    ):
        monkeypatch.setattr(recomputation, "load_streams", lambda *_: {})
        more = make_payments(NUM_PAYMENTS + 10)[NUM_PAYMENTS:]
        serve(online, rows_at(end_of_day(60), 1, 2))
        time.sleep(0.01)
        commit_payments(online, more[:5])
        build(online, USE_CASE)
        time.sleep(0.01)
        serve(online, rows_at(end_of_day(60), 3, 4, 5), name="later")
        assert (audit(online, USE_CASE).num_predictions, audit(online, USE_CASE).num_waiting) == (
            5,
            0,
        )
        commit_payments(online, more[5:])
        report = audit(online, USE_CASE)
        assert (report.num_predictions, report.num_waiting) == (2, 3)
        # A stream has its events in the table some time after they are online.
        monkeypatch.undo()
        with pytest.raises(UserError, match="features build card_fraud"):
            audit(online, USE_CASE)

    def test_what_a_running_stream_may_not_have_written_yet_waits(self, online):
        serve(online, rows_at(end_of_day(60), 1))
        with (
            exclusive(stream_lock(online, TRANSACTIONS), what="the stream"),
            pytest.raises(UserError, match="a minute later"),
        ):
            audit(online, USE_CASE)
        assert audit(online, USE_CASE).num_predictions == 1


class TestRefusals:
    def test_nothing_logged(self, online):
        with pytest.raises(UserError, match="was ever logged"):
            audit(online, USE_CASE)

    def test_an_unknown_use_case(self, online):
        with pytest.raises(NotFoundError, match="did you mean 'card_fraud'"):
            audit(online, "card_frauds")

    def test_features_that_were_not_built_since_events_came(self, online):
        serve(online, rows_at(end_of_day(60), 1))
        commit_payments(online, make_payments(NUM_PAYMENTS + 5)[NUM_PAYMENTS:])
        with pytest.raises(UserError, match="features build card_fraud"):
            audit(online, USE_CASE)

    def test_a_service_that_was_changed_since(self, online, monkeypatch):
        serve(online, rows_at(end_of_day(60), 1))
        names = recomputation.ServiceJoin.feature_names.fget
        monkeypatch.setattr(
            recomputation.ServiceJoin, "feature_names", property(lambda self: names(self)[1:])
        )
        with pytest.raises(DeclarationError, match="declare a new service"):
            audit(online, USE_CASE)

    def test_features_rebuilt_on_the_way(self, online, monkeypatch):
        serve(online, rows_at(end_of_day(60), 1))
        monkeypatch.setattr(recomputation.Recomputation, "has_same_tables", lambda _: False)
        with pytest.raises(BusyError, match="rebuilt"):
            audit(online, USE_CASE)
