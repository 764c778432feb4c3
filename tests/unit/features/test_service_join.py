import copy
from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from payments import (
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    commit_payments,
    end_of_day,
    make_payments,
)
from penstock.errors import UserError
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.historical import HistoricalReader
from penstock.features.pinned_rows import PinnedRows
from penstock.features.service_join import ServiceJoin
from penstock.features.store import open_store


def join_of(settings) -> ServiceJoin:
    objects = load_feature_objects(settings, USE_CASE)
    return ServiceJoin(objects, objects.service(SERVICE))


class TestHistoricalReader:
    def test_rows_that_came_after_the_last_build_are_not_scored_without_their_features(
        self, prepared
    ):
        def reader(version=None):
            return HistoricalReader(
                prepared, use_case=USE_CASE, service=SERVICE, table=TRANSACTIONS, version=version
            )

        commit_payments(prepared, make_payments(700)[600:])
        with pytest.raises(UserError, match="features build card_fraud"):
            reader()
        assert reader(version=0).table_version == 0


class TestServiceJoin:
    def test_it_knows_what_a_row_must_have(self, online_settings):
        join = join_of(online_settings)
        assert join.join_keys == ["CUSTOMER_ID", "TERMINAL_ID"]
        assert join.request_columns == ["TX_DATETIME", "TX_AMOUNT"]
        assert join.source_versions(online_settings) == {
            "card_fraud.customer_windows": 0,
            "card_fraud.terminal_windows": 0,
        }

    def test_an_unknown_entity_has_null_features_and_its_row_stays(self, online_settings):
        join = join_of(online_settings)
        rows = PinnedRows(online_settings, TRANSACTIONS, None)
        wanted = [*join.join_keys, *join.request_columns]
        frame = rows.read(wanted, end_of_day(40), end_of_day(41))
        frame = frame.with_columns(
            CUSTOMER_ID=pl.when(pl.int_range(pl.len()) == 0)
            .then(10**9)
            .otherwise(pl.col("CUSTOMER_ID"))
        )
        features = join.features(open_store(online_settings), frame, rows.event_time)
        counts = features["CUSTOMER_ID_NB_TX_7DAY_WINDOW"]
        assert len(counts) == frame.height
        assert counts[0] is None
        assert counts[1:].null_count() == 0
        assert features["TX_AMOUNT"].to_list() == frame["TX_AMOUNT"].to_list()

    def test_its_digest_changes_with_a_view_with_a_window_and_with_nothing_else(self, prepared):
        tables = load_feature_tables(prepared, USE_CASE)
        digest = join_of(prepared).definition(tables)
        assert join_of(prepared).definition(dict(reversed(tables.items()))) == digest
        name, table = next(iter(tables.items()))
        later = replace(table, windows=replace(table.windows, delay=timedelta(days=3)))
        assert join_of(prepared).definition(tables | {name: later}) != digest
        objects = load_feature_objects(prepared, USE_CASE)
        view = objects.views["card_fraud_customer"]
        changed = copy.copy(view)
        changed.ttl = view.ttl + timedelta(days=1)
        other = replace(objects, views=objects.views | {view.name: changed})
        assert ServiceJoin(other, other.service(SERVICE)).definition(tables) != digest
