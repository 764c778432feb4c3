import random
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest
from feast import FeatureStore, Field, FileSource, RequestSource
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64

import feast_repo
from feast_repo import PENSTOCK, ROWS, at, file_source, open_store, readings, sensor, view
from feast_scripts import run_script
from penstock.data import tables
from penstock.errors import DataError, DeclarationError
from penstock.features.delta_saved_dataset import SavedDatasetDeltaStorage
from penstock.features.delta_source import DeltaSource
from penstock.features.offline_store import PenstockOfflineStore

# Feast says so each time that on-demand views and saved datasets are used.
pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{what} (is|are) an experimental feature:RuntimeWarning")
    for what in ("On demand feature view", "Saving dataset", "Retrieving datasets")
]
FEATURES = ["readings:level", "readings:number"]


@pytest.fixture
def readings_file(tmp_path: Path) -> Path:
    readings(ROWS).write_parquet(tmp_path / "readings.parquet")
    return tmp_path / "readings.parquet"


@pytest.fixture
def store(tmp_path: Path, readings_file: Path) -> FeatureStore:
    opened = open_store(tmp_path)
    opened.apply([sensor(), view(file_source(readings_file))])
    return opened


def labels(*rows: tuple[Any, float]) -> pd.DataFrame:
    return pd.DataFrame(
        {"sensor": [s for s, _ in rows], "event_timestamp": [at(t) for _, t in rows]}
    )


class TestHistoricalFeatures:
    def test_every_label_row_comes_back_once_and_in_order(self, store):
        rows = labels((2, 9), (1, 4), (3, 9), (1, 20), (1, 4), (1, 6))
        got = store.get_historical_features(rows, features=FEATURES).to_df()
        assert got["sensor"].tolist() == [2, 1, 3, 1, 1, 1]
        assert got["number"].tolist()[:2] == [4, 0]
        assert got["number"].isna().tolist() == [False, False, True, True, False, False]
        assert got["number"].iloc[5] == 3

    def test_values_equal_those_of_feasts_duckdb_store(self, tmp_path):
        dice = random.Random(7)
        rows = [
            # Distinct created times: among full ties the DuckDB store's choice is arbitrary.
            (dice.randrange(6), dice.randrange(60), 100 + n, dice.random())
            for n in range(300)
        ]
        readings(rows).write_parquet(tmp_path / "readings.parquet")
        asked = labels(*[(dice.randrange(8), dice.randrange(80)) for _ in range(400)])
        asked.assign(label=range(len(asked))).to_parquet(tmp_path / "labels.parquet")
        run_script(Path(feast_repo.__file__), tmp_path)
        ours, theirs = (
            pl.read_parquet(tmp_path / f"{name}.parquet").sort("label")
            for name in ("PenstockOfflineStore", "duckdb")
        )
        assert ours.equals(theirs.cast(dict(ours.schema)))
        assert 0 < ours["number"].null_count() < len(asked)

    @pytest.mark.parametrize("kind", ["pandas", "polars", "arrow", "naive", "text", "nanoseconds"])
    def test_entity_rows_may_be_of_any_kind(self, store, kind):
        frame = labels((1, 6), (2, 9))
        rows: Any = {
            "pandas": lambda: frame,
            "polars": lambda: pl.from_pandas(frame),
            "arrow": lambda: pa.Table.from_pandas(frame),
            "naive": lambda: frame.assign(
                event_timestamp=frame["event_timestamp"].dt.tz_localize(None)
            ),
            "text": lambda: frame.assign(event_timestamp=frame["event_timestamp"].astype(str)),
            "nanoseconds": lambda: frame.assign(
                event_timestamp=frame["event_timestamp"].astype("datetime64[ns, UTC]")
            ),
        }[kind]()
        got = store.get_historical_features(rows, features=FEATURES).to_arrow()
        assert got["number"].to_pylist() == [3, 4]

    def test_a_missing_key_among_whole_numbers_gives_null_features(self, store):
        rows = labels((1, 6), (None, 6))
        got = store.get_historical_features(rows, features=FEATURES).to_arrow()
        assert got["number"].to_pylist() == [3, None]

    def test_the_event_time_is_the_only_timestamp_column(self, store):
        rows = labels((1, 6)).rename(columns={"event_timestamp": "happened"})
        got = store.get_historical_features(rows, features=FEATURES).to_arrow()
        assert got.column_names == ["sensor", "happened", "level", "number"]

    def test_values_not_created_yet_can_be_kept_out(self, store):
        asked = labels((1, 6), (1, 9))
        job = store.get_historical_features(
            asked, features=FEATURES, filter_by_created_timestamp=True
        )
        assert job.to_arrow()["number"].to_pylist() == [2, 3]

    def test_full_names_carry_the_views_name(self, store):
        job = store.get_historical_features(
            labels((1, 6)), features=FEATURES, full_feature_names=True
        )
        assert job.to_arrow().column_names[2:] == ["readings__level", "readings__number"]

    def test_one_view_can_be_joined_by_two_columns(self, tmp_path, readings_file):
        store = open_store(tmp_path)
        readings_view = view(file_source(readings_file))
        store.apply([sensor(), readings_view])
        from feast import FeatureService

        service = FeatureService(
            name="pairs",
            features=[
                readings_view[["number"]].with_name(name).with_join_key_map({"sensor": name})
                for name in ("left", "right")
            ],
        )
        store.apply([service])
        rows = labels((1, 9)).rename(columns={"sensor": "left"}).assign(right=2)
        got = store.get_historical_features(rows, features=service, full_feature_names=True)
        row = got.to_arrow().to_pylist()[0]
        assert (row["left__number"], row["right__number"]) == (3, 4)

    def test_a_view_without_entities_is_the_same_for_all(self, tmp_path, readings_file):
        store = open_store(tmp_path)
        schema = [Field(name="level", dtype=Float64)]
        store.apply([view(file_source(readings_file), entities=[], schema=schema)])
        rows = labels((1, 6), (99, 6))
        got = store.get_historical_features(rows, features=["readings:level"]).to_arrow()
        assert got["level"].to_pylist() == [3.5, 3.5]

    def test_mapped_names_are_found_in_the_table(self, tmp_path):
        old = {"id": "sensor", "t": "seen_at", "lv": "level"}
        frame = readings(ROWS).rename({new: name for name, new in old.items()})
        frame.write_parquet(tmp_path / "old.parquet")
        store = open_store(tmp_path)
        store.apply([sensor(), view(file_source(tmp_path / "old.parquet", field_mapping=old))])
        got = store.get_historical_features(labels((1, 6)), features=FEATURES).to_arrow()
        assert got["level"].to_pylist() == [3.5]

    def test_on_demand_features_see_stored_and_requested_values(self, tmp_path, readings_file):
        stored = view(file_source(readings_file))
        request = RequestSource(name="request", schema=[Field(name="offset", dtype=Float64)])

        @on_demand_feature_view(
            sources=[stored, request], schema=[Field(name="shifted", dtype=Float64)]
        )
        def shift(inputs: pd.DataFrame) -> pd.DataFrame:
            return pd.DataFrame({"shifted": inputs["level"] + inputs["offset"]})

        store = open_store(tmp_path)
        store.apply([sensor(), stored, shift])
        rows = labels((1, 6), (2, 9)).assign(offset=[10.0, 20.0])
        got = store.get_historical_features(rows, features=["shift:shifted", "readings:number"])
        assert got.to_df()["shifted"].tolist() == [13.5, 24.5]

    def test_a_query_is_refused_with_what_to_do(self, store):
        with pytest.raises(DataError, match="a query"):
            store.get_historical_features("SELECT 1", features=FEATURES)

    def test_a_missing_join_key_is_named(self, store):
        rows = labels((1, 6)).drop(columns="sensor")
        with pytest.raises(DataError, match="no column 'sensor'"):
            store.get_historical_features(rows, features=FEATURES)

    def test_a_column_named_like_a_feature_is_refused(self, store):
        with pytest.raises(DeclarationError, match="level"):
            store.get_historical_features(labels((1, 6)).assign(level=1), features=FEATURES)

    def test_two_timestamp_columns_need_a_name(self, store):
        rows = labels((1, 6)).rename(columns={"event_timestamp": "a"})
        with pytest.raises(DataError, match="2 timestamp columns"):
            store.get_historical_features(rows.assign(b=rows["a"]), features=FEATURES)

    def test_a_timeout_is_not_silently_ignored(self, store):
        job = store.get_historical_features(labels((1, 6)), features=FEATURES)
        with pytest.warns(RuntimeWarning, match="timeout"):
            job.to_arrow(timeout=5)


class TestPulls:
    def pull(self, store: FeatureStore, name: str, source: Any, first: float, last: float) -> Any:
        job = getattr(PenstockOfflineStore, name)(
            store.config,
            source,
            ["sensor"],
            ["number"],
            "seen_at",
            "made_at",
            at(first),
            at(last),
        )
        return job.to_arrow()

    def test_the_latest_row_of_each_entity_within_both_ends(self, store, readings_file):
        source = file_source(readings_file)
        got = self.pull(store, "pull_latest_from_table_or_query", source, 0, 8)
        assert dict(zip(*(got[c].to_pylist() for c in ("sensor", "number")), strict=True)) == {
            1: 3,
            2: 4,
        }
        early = self.pull(store, "pull_latest_from_table_or_query", source, 1, 5)
        assert sorted(early["number"].to_pylist()) == [1, 3]

    def test_all_rows_within_both_ends_in_their_order(self, store, readings_file):
        got = self.pull(store, "pull_all_from_table_or_query", file_source(readings_file), 1, 5)
        assert got["number"].to_pylist() == [1, 2, 3]

    def test_what_is_pulled_comes_as_one_batch(self, store, tmp_path):
        parts = tmp_path / "parts"
        parts.mkdir()
        for number in range(3):
            readings([(number, 1, 1, 0.0)]).write_parquet(parts / f"{number}.parquet")
        source = FileSource(name="parts", path=str(parts), timestamp_field="seen_at")
        got = self.pull(store, "pull_latest_from_table_or_query", source, 0, 9)
        assert len(got.to_batches()) == 1
        assert got.num_rows == 3

    def test_feast_materializes_from_it_into_its_online_store(self, store):
        store.materialize(at(-10), at(100))
        online = store.get_online_features(FEATURES, [{"sensor": 1}, {"sensor": 2}]).to_dict()
        assert online["number"] == [3, 4]


class TestWrites:
    def new_rows(self) -> pa.Table:
        return readings([(7, 30, 30, 7.5)]).to_arrow()

    def test_a_file_holds_the_old_rows_and_the_new(self, store, readings_file):
        store.write_to_offline_store("readings", self.new_rows().to_pandas())
        assert pl.read_parquet(readings_file)["sensor"].to_list() == [1, 2, 1, 1, 2, 7]

    def test_a_folder_gets_one_file_more(self, store, tmp_path):
        folder = tmp_path / "many"
        folder.mkdir()
        readings(ROWS).write_parquet(folder / "first.parquet")
        PenstockOfflineStore.offline_write_batch(
            store.config, view(file_source(folder)), self.new_rows(), None
        )
        assert len(list(folder.glob("*.parquet"))) == 2
        assert pl.read_parquet(folder)["sensor"].sum() == 14

    @pytest.mark.parametrize("partition", [{}, {"partition_by": "day", "event_time": "seen_at"}])
    def test_a_delta_table_gets_one_version_more(self, store, tmp_path, partition):
        path = tmp_path / "delta"
        tables.at_path(path).commit(readings(ROWS), mode="append", **partition)
        source = DeltaSource(path=str(path), timestamp_field="seen_at")
        PenstockOfflineStore.offline_write_batch(store.config, view(source), self.new_rows(), None)
        assert tables.at_path(path).latest().version == 1
        assert source.scan().collect()["sensor"].sum() == 14

    def test_rows_with_other_columns_are_refused(self, store, readings_file):
        rows = self.new_rows().drop_columns(["number"])
        with pytest.raises(DataError, match="have the columns"):
            PenstockOfflineStore.offline_write_batch(
                store.config, view(file_source(readings_file)), rows, None
            )

    @pytest.mark.parametrize("kind", ["file", "folder", "delta"])
    def test_a_saved_dataset_can_be_read_back_and_is_not_overwritten(self, store, tmp_path, kind):
        path = str(tmp_path / {"file": "saved.parquet", "folder": "saved", "delta": "table"}[kind])
        storage = (
            SavedDatasetDeltaStorage(path=path)
            if kind == "delta"
            else SavedDatasetFileStorage(path=path)
        )
        job = store.get_historical_features(labels((1, 6), (2, 9)), features=FEATURES)
        store.create_saved_dataset(job, name="saved", storage=storage)
        assert store.get_saved_dataset("saved").to_df()["number"].tolist() == [3, 4]
        with pytest.raises(SavedDatasetLocationAlreadyExists):
            store.create_saved_dataset(job, name="saved", storage=storage)
        store.create_saved_dataset(job, name="saved", storage=storage, allow_overwrite=True)
        assert len(store.get_saved_dataset("saved").to_df()) == 2


def test_the_class_path_in_feature_store_yaml_is_all_that_a_feast_repo_needs(
    tmp_path, monkeypatch, readings_file
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "feature_store.yaml").write_text(
        "project: alone\nprovider: local\n"
        f"registry:\n  registry_type: sql\n  path: sqlite:///{tmp_path}/registry.db\n"
        f"offline_store:\n  type: {PENSTOCK}\n"
        f"online_store:\n  type: sqlite\n  path: {tmp_path}/online.db\n"
        "entity_key_serialization_version: 3\n"
    )
    store = FeatureStore(repo_path=str(tmp_path))
    store.apply([sensor(), view(file_source(Path(readings_file.name)))])
    got = store.get_historical_features(labels((1, 6)), features=FEATURES).to_arrow()
    assert got["number"].to_pylist() == [3]


def test_a_source_of_another_kind_is_refused(store):
    from feast.infra.offline_stores.bigquery_source import BigQuerySource  # heavy: only here

    source = BigQuerySource(name="far", table="a.b", timestamp_field="seen_at")
    with pytest.raises(DeclarationError, match="BigQuerySource"):
        PenstockOfflineStore.pull_all_from_table_or_query(
            store.config, source, ["sensor"], ["number"], "seen_at"
        ).to_arrow()


def test_a_view_with_a_long_ttl_sees_old_values(tmp_path, readings_file):
    store = open_store(tmp_path)
    store.apply([sensor(), view(file_source(readings_file), ttl=timedelta(days=9))])
    got = store.get_historical_features(labels((1, 9000)), features=FEATURES).to_arrow()
    assert got["number"].to_pylist() == [3]
    assert got.schema.field("number").type == pa.int64()
