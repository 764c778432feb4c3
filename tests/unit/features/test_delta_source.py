from pathlib import Path

import polars as pl
import pytest
from feast.data_source import DataSource
from feast.value_type import ValueType

from feast_repo import PENSTOCK, ROWS, at, open_store, readings, sensor, view
from penstock.data import tables
from penstock.errors import DataError, DeclarationError
from penstock.features.delta_source import DeltaSource, arrow_schema


@pytest.fixture
def store(tmp_path: Path):
    return open_store(tmp_path, {"type": PENSTOCK, "tables_root": str(tmp_path / "tables")})


def named(**more: str) -> DeltaSource:
    return DeltaSource(table="plant.readings", **{"timestamp_field": "seen_at", **more})


def test_feasts_registry_gives_back_what_it_was_given(store, tmp_path):
    source = named(
        created_timestamp_column="made_at", description="levels", owner="us", name="levels"
    )
    source.tags["a"] = "b"
    source.field_mapping["old"] = "new"
    again = DataSource.from_proto(source.to_proto())
    assert again == source
    assert isinstance(again, DeltaSource)
    assert hash(again) == hash(source)
    other = DeltaSource(path="a/b", timestamp_field="seen_at")
    assert DataSource.from_proto(other.to_proto()) == other != source


def test_a_table_is_found_below_the_stores_root(store, tmp_path):
    assert named().location(store.config) == str(tmp_path / "tables" / "plant" / "readings")


def test_a_relative_path_belongs_to_the_repo(store, tmp_path):
    source = DeltaSource(path="some/table", timestamp_field="seen_at")
    assert source.location(store.config) == str(tmp_path / "some" / "table")
    assert source.location() == "some/table"


def test_without_a_root_the_projects_settings_say_where_a_table_is(tmp_path, monkeypatch):
    (tmp_path / "pyproject.toml").write_text("[tool.penstock]\n")
    monkeypatch.chdir(tmp_path)
    wanted = tmp_path / ".penstock" / "tables" / "plant" / "readings"
    assert named().location(open_store(tmp_path).config) == str(wanted)


def test_features_come_out_of_the_newest_version(store, tmp_path):
    folder = tables.at_path(tmp_path / "tables" / "plant" / "readings")
    folder.commit(readings(ROWS[:2]), mode="append")
    store.apply([sensor(), view(named())])
    folder.commit(readings(ROWS), mode="overwrite")
    rows = pl.DataFrame({"sensor": [1], "event_timestamp": [at(6)]})
    got = store.get_historical_features(rows, features=["readings:number"]).to_arrow()
    assert got["number"].to_pylist() == [3]


def test_feast_infers_a_schema_from_the_table(store, tmp_path):
    folder = tables.at_path(tmp_path / "tables" / "plant" / "readings")
    folder.commit(readings(ROWS).with_columns(name=pl.lit("x")), mode="append")
    types = dict(named().get_table_column_names_and_types(store.config))
    feast_type = named().source_datatype_to_feast_value_type()
    assert {name: feast_type(kind) for name, kind in types.items()} == {
        "sensor": ValueType.INT64,
        "seen_at": ValueType.UNIX_TIMESTAMP,
        "made_at": ValueType.UNIX_TIMESTAMP,
        "level": ValueType.DOUBLE,
        "number": ValueType.INT64,
        "name": ValueType.STRING,
    }


def test_a_repo_can_be_applied_before_its_table_is_built(store):
    store.apply([sensor(), view(named())])
    assert store.get_feature_view("readings").batch_source == named()


def test_a_timestamp_that_the_table_lacks_is_named(store, tmp_path):
    tables.at_path(tmp_path / "tables" / "plant" / "readings").commit(readings(ROWS), mode="append")
    with pytest.raises(DataError, match="no column 'then'"):
        named(timestamp_field="then").validate(store.config)


@pytest.mark.parametrize("given", [{}, {"table": "a.b", "path": "c"}, {"table": "no_use_case"}])
def test_exactly_one_of_table_and_path(given):
    with pytest.raises(DeclarationError):
        DeltaSource(timestamp_field="seen_at", **given)


def test_it_is_no_sql_table():
    with pytest.raises(DeclarationError, match="not a SQL table"):
        named().get_table_query_string()


def test_no_type_leaves_that_feast_does_not_know():
    schema = pl.Schema(
        {"s": pl.String, "b": pl.Binary, "l": pl.List(pl.String), "c": pl.Categorical()}
    )
    assert not any("large" in str(field.type) for field in arrow_schema(schema))
