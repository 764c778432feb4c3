import sqlite3
import threading

import pytest
from feast import FeatureView, Field, FileSource
from feast.repo_config import RepoConfig
from feast.types import Array, Float64, Int64

from online_stores import (
    START_US,
    OnlineStoreBehaviour,
    make_view,
    prepare,
    read,
    rider,
    write,
)
from penstock.errors import DeclarationError, NotFoundError
from penstock.features.sqlite_online_store import RowSqliteOnlineStore


@pytest.fixture
def config(tmp_path):
    return RepoConfig(
        project="rides",
        provider="local",
        registry=str(tmp_path / "registry.db"),
        online_store={
            "type": "penstock.features.sqlite_online_store.RowSqliteOnlineStore",
            "path": str(tmp_path / "online.db"),
        },
        entity_key_serialization_version=3,
    )


@pytest.fixture
def store():
    store = RowSqliteOnlineStore()
    yield store
    store.disconnect()


class TestRowSqliteOnlineStore(OnlineStoreBehaviour):
    def test_of_two_rows_of_one_time_the_later_created_one_stays(self, store, config):
        view = make_view()
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 2.0, created_us=START_US + 9)
        write(store, config, view, 1, START_US, 1.0, created_us=START_US + 3)
        assert read(store, config, view, 1).values.tolist() == [[2, 2]]

    def test_a_view_that_was_never_applied_is_named(self, store, config):
        with pytest.raises(NotFoundError, match=r"'rides'.*features apply"):
            read(store, config, make_view(), 1)

    def test_a_new_feature_gets_a_column_and_the_old_values_stay(self, store, config):
        small = FeatureView(
            name="rides",
            entities=[rider],
            schema=[Field(name="rider_id", dtype=Int64), Field(name="mean_km", dtype=Float64)],
            source=FileSource(name="s", path="x.parquet", timestamp_field="at"),
        )
        prepare(store, config, small)
        connection = sqlite3.connect(config.online_store.path)
        connection.execute("PRAGMA table_info('rides_rides')")
        connection.close()
        view = make_view()
        with pytest.raises(NotFoundError, match="features apply"):
            write(store, config, view, 1, START_US, 1.0)
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        assert read(store, config, view, 1).values.tolist() == [[1, 1]]

    def test_a_dropped_view_is_gone(self, store, config):
        view = make_view()
        prepare(store, config, view)
        store.update(config, [view], [], [], [], partial=False)
        with pytest.raises(NotFoundError):
            read(store, config, view, 1)

    def test_a_type_that_it_cannot_hold_is_refused_by_name(self, store, config):
        view = FeatureView(
            name="lists",
            entities=[rider],
            schema=[Field(name="rider_id", dtype=Int64), Field(name="path", dtype=Array(Float64))],
            source=FileSource(name="s", path="x.parquet", timestamp_field="at"),
        )
        with pytest.raises(DeclarationError, match="'path'"):
            prepare(store, config, view)

    def test_a_reader_goes_on_while_a_writer_is_inside_its_transaction(self, store, config):
        view = make_view()
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        writer = sqlite3.connect(config.online_store.path)
        writer.execute("BEGIN IMMEDIATE")
        assert read(store, config, view, 1).values.tolist() == [[1, 1]]
        writer.rollback()
        writer.close()

    def test_several_threads_may_read_through_one_store(self, store, config):
        view = make_view()
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        wrong = []

        def look() -> None:
            for _ in range(50):
                if read(store, config, view, 1).values.tolist() != [[1, 1]]:
                    wrong.append(1)

        threads = [threading.Thread(target=look) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong
