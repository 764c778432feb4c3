import shutil

import pytest

from feast_repo import ROWS, readings
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.errors import NotFoundError
from penstock.features.build import build
from penstock.features.materialize import materialize
from penstock.features.overview import overview
from penstock.features.store import apply
from penstock.settings import Settings
from real_data import REPO_ROOT

VIEWS = """
from feast import Entity, FeatureView, Field, ValueType
from feast.types import Float64, Int64
from penstock.features.delta_source import DeltaSource

sensor = Entity(name="sensor", join_keys=["sensor"], value_type=ValueType.INT64)
level = FeatureView(
    name="level",
    entities=[sensor],
    schema=[Field(name="sensor", dtype=Int64), Field(name="level", dtype=Float64)],
    source=DeltaSource(table="levels.readings", timestamp_field="seen_at"),
)
"""


class TestOverview:
    def test_it_tells_what_was_built_applied_and_materialized(self, online_settings):
        found = overview(online_settings, USE_CASE)
        assert [(t.name, t.version, t.source_version, t.num_rows) for t in found.tables] == [
            ("card_fraud.customer_windows", 0, 0, 3_000),
            ("card_fraud.terminal_windows", 0, 0, 3_000),
        ]
        assert all(view.is_applied and view.materialized_until for view in found.views)
        assert [len(service.features) for service in found.services] == [15]

    def test_before_anything_was_done_it_says_so(self, tmp_path):
        found = overview(settings_in(tmp_path), USE_CASE)
        assert [table.version for table in found.tables] == [None, None]
        assert [view.is_applied for view in found.views] == [False, False]

    def test_views_over_a_table_as_it_is_need_no_feature_table(self, tmp_path):
        folder = tmp_path / "feature_repo" / "levels"
        folder.mkdir(parents=True)
        shutil.copy(REPO_ROOT / "feature_repo" / "feature_store.yaml", folder.parent)
        (folder / "__init__.py").touch()
        (folder / "tables.py").touch()
        (folder / "views.py").write_text(VIEWS)
        settings = Settings(project_root=tmp_path)
        tables.commit(settings, "levels.readings", readings(ROWS), mode="append")
        apply(settings)
        assert build(settings, "levels") == []
        (view,) = materialize(settings, "levels")
        assert view.num_entities == 2
        found = overview(settings, "levels")
        assert found.tables == ()
        assert found.views[0].materialized_until == view.until

    def test_an_unknown_use_case_is_refused(self, tmp_path):
        with pytest.raises(NotFoundError):
            overview(settings_in(tmp_path), "card_frauds")
