from datetime import timedelta

import numpy as np
import polars as pl
import pytest

from payments import SERVICE, TRANSACTIONS, USE_CASE, end_of_day
from penstock.data import tables
from penstock.errors import NotFoundError, UserError
from penstock.features.online import OnlineReader
from penstock.features.training_set import build_training_set, read_training_set

CUSTOMER_FEATURES = tuple(
    f"CUSTOMER_ID_{kind}_{days}DAY_WINDOW"
    for days in (1, 7, 30)
    for kind in ("NB_TX", "AVG_AMOUNT")
)


@pytest.fixture
def reader(online_settings):
    reader = OnlineReader.open(online_settings, USE_CASE, SERVICE)
    yield reader
    reader.close()


def request(**changes):
    return {
        "CUSTOMER_ID": 1,
        "TERMINAL_ID": 2,
        "TX_DATETIME": end_of_day(59),
        "TX_AMOUNT": 12.5,
    } | changes


class TestOpen:
    def test_a_request_has_the_join_keys_and_the_functions_inputs(self, reader):
        assert [(f.name, f.dtype) for f in reader.request_fields] == [
            ("CUSTOMER_ID", "int64"),
            ("TERMINAL_ID", "int64"),
            ("TX_DATETIME", "timestamp"),
            ("TX_AMOUNT", "float64"),
        ]

    def test_an_unknown_service_is_refused(self, online_settings):
        with pytest.raises(NotFoundError, match=SERVICE):
            OnlineReader.open(online_settings, USE_CASE, "card_fraud_v9")

    def test_it_reads_nothing_from_the_registry(self, online_settings, monkeypatch):
        def refuse(*_args: object, **_kwargs: object) -> None:
            raise AssertionError("the registry was opened")

        monkeypatch.setattr("feast.infra.registry.sql.SqlRegistry.__init__", refuse)
        reader = OnlineReader.open(online_settings, USE_CASE, SERVICE)
        assert not np.isnan(reader.read([request()]).values).any()
        reader.close()


class TestFeaturesThatARowBrings:
    def test_they_stand_in_place_of_what_is_stored(self, reader):
        name = CUSTOMER_FEATURES[0]
        plain, brought, none = reader.read(
            [request(), request(**{name: 77.0}), request(**{name: float("nan")})]
        ).values
        column = reader.feature_names.index(name)
        others = [n for n in range(15) if n != column]
        assert brought[column] == 77.0 != plain[column]
        assert np.isnan(none[column])
        np.testing.assert_array_equal(brought[others], plain[others])
        np.testing.assert_array_equal(none[others], plain[others])

    def test_they_and_their_absence_are_told(self, reader):
        first, second = CUSTOMER_FEATURES[:2]
        found = reader.read([request(), request(**{first: 1.0, second: float("nan")})])
        assert found.missing == [(), (second,)]
        assert found.given.keys() == {1}
        assert found.given[1].keys() == {first, second}

    def test_they_stand_in_place_of_what_is_computed(self, reader):
        found = reader.read([request(TX_DURING_NIGHT=0.25)])
        assert found.values[0, reader.feature_names.index("TX_DURING_NIGHT")] == 0.25

    def test_a_store_is_not_asked_for_what_every_row_brings(self, reader, monkeypatch):
        reads = []
        original = reader._store.read_rows
        monkeypatch.setattr(
            reader._store, "read_rows", lambda *args: reads.append(args[1].name) or original(*args)
        )
        all_of_them = request(CUSTOMER_ID=10**9, **dict.fromkeys(CUSTOMER_FEATURES, 1.0))
        assert reader.read([all_of_them]).missing == [()]
        assert reads == ["card_fraud_terminal"]
        reader.read([all_of_them, request()])
        assert reads == ["card_fraud_terminal", "card_fraud_customer", "card_fraud_terminal"]


class TestRead:
    def test_the_values_are_those_of_a_training_set_at_the_same_time(self, reader, online_settings):
        newest = (
            tables.scan(online_settings, TRANSACTIONS)
            .sort("TX_DATETIME")
            .tail(30)
            .unique("CUSTOMER_ID", keep="last")
            .unique("TERMINAL_ID", keep="last")
            .collect()
        )
        # Only the newest payment of both its customer and its terminal has the rows that are
        # online now.
        all_rows = tables.scan(online_settings, TRANSACTIONS).collect()
        last = {
            key: set(all_rows.group_by(key).agg(pl.col("TRANSACTION_ID").max())["TRANSACTION_ID"])
            for key in ("CUSTOMER_ID", "TERMINAL_ID")
        }
        both = last["CUSTOMER_ID"] & last["TERMINAL_ID"]
        newest = all_rows.filter(pl.col("TRANSACTION_ID").is_in(list(both)))
        assert newest.height > 0
        offline = read_training_set(
            build_training_set(
                online_settings,
                use_case=USE_CASE,
                service=SERVICE,
                label_table=TRANSACTIONS,
                label="TX_FRAUD",
                start=newest["TX_DATETIME"].min(),
                end=end_of_day(59) + timedelta(days=1),
                extra_columns=["TRANSACTION_ID"],
            )
        ).filter(pl.col("TRANSACTION_ID").is_in(list(both)))
        fields = [f.name for f in reader.request_fields]
        rows = newest.sort("TX_DATETIME", "TRANSACTION_ID").select(fields).to_dicts()
        online = reader.read(rows)
        expected = offline.select(reader.feature_names).cast(pl.Float64).to_numpy()
        np.testing.assert_array_equal(online.values, expected)
        assert online.missing == [()] * len(rows)

    def test_an_unknown_entity_is_answered_with_its_features_named(self, reader):
        found = reader.read([request(), request(CUSTOMER_ID=10**9)])
        assert found.missing == [(), CUSTOMER_FEATURES]
        assert not np.isnan(found.values[0]).any()
        assert np.isnan(found.values[1]).sum() == 6

    def test_an_expired_value_is_missing_and_one_that_just_holds_is_not(
        self, reader, online_settings
    ):
        rows = tables.scan(online_settings, TRANSACTIONS).filter(pl.col("CUSTOMER_ID") == 1)
        newest = rows.select(pl.col("TX_DATETIME").max()).collect().item()
        end = newest + timedelta(days=30)
        just, late = reader.read(
            [
                request(TX_DATETIME=end),
                request(TX_DATETIME=end + timedelta(microseconds=1)),
            ]
        ).missing
        assert set(just) & set(CUSTOMER_FEATURES) == set()
        assert set(late) & set(CUSTOMER_FEATURES) == set(CUSTOMER_FEATURES)

    def test_the_same_entity_may_come_twice_in_one_batch(self, reader):
        one = reader.read([request()]).values
        many = reader.read([request(), request(CUSTOMER_ID=3), request()]).values
        np.testing.assert_array_equal(many[[0, 2]], np.vstack([one, one]))

    def test_a_batch_is_one_read_a_view(self, reader, monkeypatch):
        reads = []
        original = reader._store.read_rows
        monkeypatch.setattr(
            reader._store, "read_rows", lambda *args: reads.append(args[1].name) or original(*args)
        )
        reader.read([request(CUSTOMER_ID=n) for n in range(40)])
        assert reads == ["card_fraud_customer", "card_fraud_terminal"]

    def test_no_rows_give_no_rows(self, reader):
        assert reader.read([]).values.shape == (0, 15)

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("CUSTOMER_ID", "7"),
            ("CUSTOMER_ID", 1.5),
            ("CUSTOMER_ID", 2**63),
            ("TX_AMOUNT", "7"),
            ("TX_AMOUNT", None),
            ("TX_DATETIME", "2024-01-01"),
        ],
    )
    def test_a_value_of_another_type_is_refused_with_its_field(self, reader, field, value):
        with pytest.raises(UserError, match=field):
            reader.read([request(**{field: value})])

    def test_a_missing_field_is_refused(self, reader):
        row = request()
        del row["TX_AMOUNT"]
        with pytest.raises(UserError, match="lacks the field 'TX_AMOUNT'"):
            reader.read([row])
