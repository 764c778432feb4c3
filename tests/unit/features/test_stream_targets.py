import shutil
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from textwrap import dedent

import orjson
import pytest
from feast.infra.online_stores.helpers import get_online_store_from_config

from penstock.data.contracts import get_table
from penstock.errors import DataError, UserError
from penstock.features import entity_keys
from penstock.features.declarations import load_feature_objects
from penstock.features.store import apply, open_store, repo_config
from penstock.features.stream_declarations import get_stream
from penstock.features.stream_targets import check_columns, load_targets
from penstock.features.streaming import run
from penstock.settings import Settings
from real_data import REPO_ROOT
from streams import MemoryLog

TABLE = "tides.levels"
DECLARATIONS = {
    "__init__": "",
    "tables": """
        import pandera.polars as pa
        import polars as pl
        from penstock.data.contracts import Table

        levels = Table(
            name="tides.levels",
            event_time="at",
            schema=pa.DataFrameSchema({
                "port": pa.Column(pl.String),
                "at": pa.Column(pl.Datetime("us", "UTC")),
                "metres": pa.Column(pl.Float64),
            }),
        )
    """,
    "entities": """
        from feast import Entity, ValueType
        harbour = Entity(name="harbour", join_keys=["harbour"], value_type=ValueType.STRING)
    """,
    "feature_tables": """
        from datetime import timedelta
        from penstock.features.declarations import FeatureTable
        from penstock.features.windows import Aggregation, Windows

        tides = FeatureTable(
            name="tides.means",
            source="tides.levels",
            windows=Windows(
                entity=("port",),
                event_time="at",
                widths={"hour": timedelta(hours=1)},
                aggregations=(Aggregation(kind="mean", column="metres", name="mean_{window}"),),
            ),
        )
        unread = FeatureTable(name="tides.unread", source="tides.levels", windows=tides.windows)
    """,
    "views": """
        from feast import FeatureView, Field
        from feast.types import Float64, String
        from penstock.features.delta_source import DeltaSource
        from tides.entities import harbour

        def view(name, table, feature, column, **more):
            return FeatureView(
                name=name,
                entities=[harbour],
                schema=[Field(name="harbour", dtype=String), Field(name=feature, dtype=Float64)],
                source=DeltaSource(
                    table=table,
                    timestamp_field="at",
                    field_mapping={"port": "harbour", column: feature},
                ),
                **more,
            )

        means = view("tide_means", "tides.means", "mean", "mean_hour")
        again = view("tide_means_again", "tides.means", "mean_again", "mean_hour")
        offline = view("tide_offline", "tides.means", "mean_offline", "mean_hour", online=False)
        newest = view("tide_newest", "tides.levels", "level", "metres")
    """,
    "streams": """
        from penstock.data.events import Push
        from penstock.features.stream_declarations import Stream
        levels = Stream(table="tides.levels", sources=(Push(),))
    """,
}


@pytest.fixture
def settings(tmp_path, monkeypatch) -> Settings:
    repo = tmp_path / "feature_repo"
    (repo / "tides").mkdir(parents=True)
    for name, text in DECLARATIONS.items():
        (repo / "tides" / f"{name}.py").write_text(dedent(text))
    shutil.copy(REPO_ROOT / "feature_repo" / "feature_store.yaml", repo)
    monkeypatch.syspath_prepend(str(repo))
    yield Settings(project_root=tmp_path)
    from sys import modules

    for name in [name for name in modules if name.partition(".")[0] == "tides"]:
        del modules[name]


def targets(settings, **changes):
    stream = replace(get_stream(settings, "tides"), **changes)
    return load_targets(settings, open_store(settings), stream, get_table(settings, TABLE))


class TestTargets:
    def test_every_online_view_of_what_the_table_feeds_is_one(self, settings):
        apply(settings)
        found = targets(settings)
        assert [target.table.name for target in found.windowed] == ["tides.means"]
        assert [v.name for v in found.views] == ["tide_means", "tide_means_again", "tide_newest"]

    def test_the_digest_changes_with_what_states_depend_on(self, settings):
        apply(settings)
        first = targets(settings).digest
        assert targets(settings).digest == first
        assert targets(settings, flush_interval=timedelta(seconds=1)).digest == first
        assert targets(settings, resolution=timedelta(seconds=1)).digest != first

    def test_a_view_that_was_not_applied_is_told(self, settings):
        with pytest.raises(UserError, match="penstock features apply"):
            targets(settings)

    def test_a_feature_table_of_columns_that_there_are_not_is_refused(self, settings):
        apply(settings)
        contract = get_table(settings, TABLE)
        found = targets(settings)
        check_columns(found, contract)
        fewer = replace(contract, schema=contract.schema.remove_columns(["metres"]))
        with pytest.raises(DataError, match="metres"):
            check_columns(found, fewer)


def test_views_under_other_names_and_of_the_raw_table_get_their_rows(settings):
    apply(settings)
    start = datetime(2024, 5, 1, tzinfo=UTC)

    def event(minute: int, port: str, metres: float) -> bytes:
        at = (start + timedelta(minutes=minute)).isoformat()
        return orjson.dumps({"port": port, "at": at, "metres": metres})

    events = [event(0, "a", 1.0), event(30, "a", 2.0), event(200, "b", 5.0), event(10, "a", 6.0)]
    log = MemoryLog(log=events)
    stream = get_stream(settings, "tides")
    run(settings, stream, log.source, until_idle_s=0.0)
    wanted = {"tide_means": [3.0, 5.0], "tide_means_again": [3.0, 5.0], "tide_newest": [2.0, 5.0]}
    for rebuild in (False, True):
        run(settings, stream, log.source, until_idle_s=0.0, rebuild=rebuild)
        config = repo_config(settings)
        store = get_online_store_from_config(config.online_store)
        keys = entity_keys.encode({"harbour": ["a", "b"]})
        for name, view in load_feature_objects(settings, "tides").views.items():
            if name in wanted:
                read = store.read_rows(config, view, keys, [view.features[0].name])
                assert read.values[:, 0].tolist() == wanted[name]
        store.disconnect()
