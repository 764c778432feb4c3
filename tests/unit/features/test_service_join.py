import polars as pl

from payments import SERVICE, TRANSACTIONS, USE_CASE, end_of_day
from penstock.features.declarations import load_feature_objects
from penstock.features.service_join import PinnedRows, ServiceJoin
from penstock.features.store import open_store


def join_of(settings) -> ServiceJoin:
    objects = load_feature_objects(settings, USE_CASE)
    return ServiceJoin(objects, objects.service(SERVICE))


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
