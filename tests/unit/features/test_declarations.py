from dataclasses import replace
from datetime import timedelta

import pytest

from payments import SERVICE, USE_CASE, settings_in
from penstock.errors import DeclarationError, NotFoundError
from penstock.features.declarations import (
    FeatureTable,
    load_feature_objects,
    load_feature_tables,
)
from penstock.features.windows import Aggregation, Windows

WINDOWS = Windows(
    entity=("rider_id",),
    event_time="at",
    widths={"1D": timedelta(days=1)},
    aggregations=(Aggregation(kind="count", name="rides_{window}"),),
)


class TestFeatureTable:
    def test_its_digest_changes_with_anything_declared(self):
        table = FeatureTable(name="city.rides_by_rider", source="city.rides", windows=WINDOWS)
        delayed = replace(table, windows=replace(WINDOWS, delay=timedelta(days=1)))
        wider = replace(table, windows=replace(WINDOWS, widths={"1D": timedelta(days=2)}))
        other = replace(table, source="city.trips")
        digests = {table.digest, delayed.digest, wider.digest, other.digest}
        assert len(digests) == 4
        assert replace(table).digest == table.digest

    def test_a_table_cannot_be_made_from_itself(self):
        with pytest.raises(DeclarationError, match="itself"):
            FeatureTable(name="city.rides", source="city.rides", windows=WINDOWS)

    def test_a_name_without_its_use_case_is_refused(self):
        with pytest.raises(DeclarationError, match="'rides'"):
            FeatureTable(name="rides", source="city.rides", windows=WINDOWS)


class TestLoadFeatureTables:
    def test_the_tables_come_in_declared_order(self, tmp_path):
        assert list(load_feature_tables(settings_in(tmp_path), USE_CASE)) == [
            "card_fraud.customer_windows",
            "card_fraud.terminal_windows",
        ]

    def test_a_table_of_another_use_case_is_refused(self, tmp_path):
        folder = tmp_path / "feature_repo" / "borrower"
        folder.mkdir(parents=True)
        (folder / "tables.py").touch()
        (folder / "feature_tables.py").write_text(
            "from datetime import timedelta\n"
            "from penstock.features.declarations import FeatureTable\n"
            "from penstock.features.windows import Aggregation, Windows\n"
            "table = FeatureTable(name='lender.a', source='lender.b', windows=Windows(\n"
            "    entity=('x',), event_time='at', widths={'1D': timedelta(days=1)},\n"
            "    aggregations=(Aggregation(kind='count', name='n'),)))\n"
        )
        settings = settings_in(tmp_path).model_copy(update={"project_root": tmp_path})
        with pytest.raises(DeclarationError, match=r"lender\.a.*borrower\."):
            load_feature_tables(settings, "borrower")


class TestLoadFeatureObjects:
    def test_the_service_has_the_fifteen_published_features(self, tmp_path):
        objects = load_feature_objects(settings_in(tmp_path), USE_CASE)
        views = objects.service(SERVICE).feature_view_projections
        assert [f.name for view in views for f in view.features] == [
            "TX_AMOUNT",
            "TX_DURING_WEEKEND",
            "TX_DURING_NIGHT",
            *(
                name.format(days=days)
                for entity in ("CUSTOMER_ID_NB_TX CUSTOMER_ID_AVG_AMOUNT",
                               "TERMINAL_ID_NB_TX TERMINAL_ID_RISK")
                for days in (1, 7, 30)
                for name in (f"{prefix}_{{days}}DAY_WINDOW" for prefix in entity.split())
            ),
        ]  # fmt: skip

    def test_an_unknown_service_is_refused_with_the_nearest_name(self, tmp_path):
        objects = load_feature_objects(settings_in(tmp_path), USE_CASE)
        with pytest.raises(NotFoundError, match="did you mean 'card_fraud_v1'"):
            objects.service("card_fraud_v2")

    def test_an_unknown_use_case_is_refused(self, tmp_path):
        with pytest.raises(NotFoundError, match="card_fraud"):
            load_feature_objects(settings_in(tmp_path), "card_frauds")
