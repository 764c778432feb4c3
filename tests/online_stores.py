"""What every online store of ours must do: test classes of the single stores inherit it."""

from datetime import UTC, datetime, timedelta

import numpy as np
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from feast.types import Bool, Float64, Int64, String
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.features import entity_keys
from penstock.features.online_rows import NO_EVENT_US, WrittenRows
from penstock.features.row_cache import RowCache
from waiting import wait_for

START = datetime(2024, 1, 1, tzinfo=UTC)
START_US = int(START.timestamp()) * 1_000_000
rider = Entity(name="rider", join_keys=["rider_id"], value_type=ValueType.INT64)


def make_view(name: str = "rides") -> FeatureView:
    return FeatureView(
        name=name,
        entities=[rider],
        ttl=timedelta(days=1),
        schema=[
            Field(name="rider_id", dtype=Int64),
            Field(name="num_rides", dtype=Int64),
            Field(name="mean_km", dtype=Float64),
            Field(name="is_member", dtype=Bool),
            Field(name="city", dtype=String),
        ],
        source=FileSource(name=f"{name}_source", path="x.parquet", timestamp_field="at"),
    )


def keys(*riders: int) -> list[bytes]:
    return entity_keys.encode({"rider_id": list(riders)})


def write(store, config, view, rider, at_us, value, created_us=None):
    store.write_rows(
        config,
        view,
        WrittenRows(
            keys=keys(rider),
            event_us=[at_us],
            created_us=None if created_us is None else [created_us],
            features={"num_rides": [None if value is None else int(value)], "mean_km": [value]},
        ),
    )


def read(store, config, view, *riders):
    return store.read_rows(config, view, keys(*riders), ["num_rides", "mean_km"])


def prepare(store, config: RepoConfig, view: FeatureView) -> None:
    store.update(config, [], [view], [], [rider], partial=True)


def feast_key(rider_id: int) -> EntityKey:
    return EntityKey(join_keys=["rider_id"], entity_values=[Value(int64_val=rider_id)])


class OnlineStoreBehaviour:
    """Needs the fixtures `store` and `config`; each test takes a view of its own."""

    def test_what_was_written_is_read_in_the_order_asked_for(self, store, config):
        view = make_view("order")
        prepare(store, config, view)
        for rider_id in (1, 2, 3):
            write(store, config, view, rider_id, START_US + rider_id, rider_id * 1.0)
        found = read(store, config, view, 3, 1, 3)
        assert found.values.tolist() == [[3, 3], [1, 1], [3, 3]]
        assert found.event_us.tolist() == [START_US + 3, START_US + 1, START_US + 3]

    def test_an_unknown_entity_has_no_event_time_and_no_values(self, store, config):
        view = make_view("unknown")
        prepare(store, config, view)
        found = read(store, config, view, 77)
        assert found.event_us.tolist() == [NO_EVENT_US]
        assert np.isnan(found.values).all()

    def test_reading_no_keys_gives_no_rows(self, store, config):
        view = make_view("none")
        prepare(store, config, view)
        assert store.read_rows(config, view, [], ["mean_km"]).values.shape == (0, 1)

    def test_an_older_row_never_overwrites_a_newer_one(self, store, config):
        view = make_view("older")
        prepare(store, config, view)
        write(store, config, view, 1, START_US + 1, 2.0)
        write(store, config, view, 1, START_US, 1.0)
        assert read(store, config, view, 1).values.tolist() == [[2, 2]]

    def test_a_row_is_replaced_by_an_older_one_where_that_is_asked_for(self, store, config):
        view = make_view("replaced")
        prepare(store, config, view)
        write(store, config, view, 1, START_US + 1, 2.0)
        older = {"num_rides": [1], "mean_km": [1.0]}
        rows = WrittenRows(keys=keys(1), event_us=[START_US], created_us=None, features=older)
        store.replace_rows(config, view, rows)
        found = read(store, config, view, 1)
        assert (found.event_us.tolist(), found.values.tolist()) == ([START_US], [[1, 1]])

    def test_a_correction_at_the_same_time_is_taken(self, store, config):
        view = make_view("correction")
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        write(store, config, view, 1, START_US, 5.0)
        assert read(store, config, view, 1).values.tolist() == [[5, 5]]

    def test_an_absent_value_replaces_the_former_one(self, store, config):
        view = make_view("absent")
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        write(store, config, view, 1, START_US + 1, None)
        found = read(store, config, view, 1)
        assert np.isnan(found.values).all()
        assert found.event_us.tolist() == [START_US + 1]

    def test_the_newest_of_a_batch_wins_whatever_its_place(self, store, config):
        view = make_view("batch")
        prepare(store, config, view)
        times = [START_US + 5, START_US + 9, START_US + 7]
        rows = WrittenRows(
            keys=keys(1, 1, 1),
            event_us=times,
            created_us=None,
            features={"num_rides": [5, 9, 7], "mean_km": [5.0, 9.0, 7.0]},
        )
        store.write_rows(config, view, rows)
        assert read(store, config, view, 1).values.tolist() == [[9, 9]]

    def test_any_order_of_writes_ends_with_the_newest(self, store, config):
        view = make_view("any_order")
        prepare(store, config, view)
        rider_id = 0

        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.integers(0, 10**13), min_size=1, max_size=8, unique=True))
        def check(offsets: list[int]) -> None:
            nonlocal rider_id
            rider_id += 1
            for offset in offsets:
                write(store, config, view, rider_id, START_US + offset, float(offset))
            newest = max(offsets)
            found = read(store, config, view, rider_id)
            assert found.values.tolist() == [[newest, newest]]
            assert found.event_us.tolist() == [START_US + newest]

        check()

    def test_numbers_come_back_as_they_went(self, store, config):
        view = make_view("numbers")
        prepare(store, config, view)
        numbers = [0.0, -0.0, 1e-300, -1.5, 1 / 3, 2.0**53]
        counts = [0, -1, 127, 128, 2**31, -(2**53)]
        store.write_rows(
            config,
            view,
            WrittenRows(
                keys=keys(*range(len(numbers))),
                event_us=[START_US] * len(numbers),
                created_us=None,
                features={"mean_km": numbers, "num_rides": counts},
            ),
        )
        found = read(store, config, view, *range(len(numbers)))
        assert found.values.tolist() == [list(pair) for pair in zip(counts, numbers, strict=True)]

    def test_feast_reads_what_it_wrote_through_its_own_interface(self, store, config):
        view = make_view("feast")
        prepare(store, config, view)
        values = {
            "num_rides": Value(int64_val=4),
            "mean_km": Value(double_val=2.5),
            "is_member": Value(bool_val=True),
            "city": Value(string_val="Köln"),
        }
        store.online_write_batch(config, view, [(feast_key(1), values, START, None)], None)
        [(at, found), nothing] = store.online_read(config, view, [feast_key(1), feast_key(2)])
        assert at == START
        assert found == values
        # Feast's Redis store gives an unknown entity the year 1970 and features without values.
        assert not any(value.WhichOneof("val") for value in (nothing[1] or {}).values())

    def test_feasts_interface_keeps_the_newer_row_too(self, store, config):
        view = make_view("feast_guard")
        prepare(store, config, view)
        newer, older = Value(double_val=2.0), Value(double_val=1.0)
        later = START + timedelta(seconds=1)
        store.online_write_batch(
            config, view, [(feast_key(1), {"mean_km": newer}, later, None)], None
        )
        store.online_write_batch(
            config, view, [(feast_key(1), {"mean_km": older}, START, None)], None
        )
        [(at, found)] = store.online_read(config, view, [feast_key(1)], ["mean_km"])
        assert (at, found) == (later, {"mean_km": newer})

    def test_many_more_rows_than_one_block_all_arrive(self, store, config):
        view = make_view("many")
        prepare(store, config, view)
        riders = list(range(5_000))
        store.write_rows(
            config,
            view,
            WrittenRows(
                keys=keys(*riders),
                event_us=[START_US] * len(riders),
                created_us=None,
                features={"num_rides": riders, "mean_km": [float(r) for r in riders]},
            ),
        )
        assert read(store, config, view, *riders).values[:, 1].tolist() == riders

    def test_a_cache_gives_what_was_written_by_somebody_else(self, store, config):
        view = make_view("cached")
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        write(store, config, view, 2, START_US, 2.0)
        other = type(store)()
        cache = RowCache(other, max_age_s=600)
        for _ in range(3):
            assert read(cache, config, view, 1, 2, 3).values[:2].tolist() == [[1, 1], [2, 2]]
        # The first look takes all for written, the unknown rider is asked for each time.
        assert (cache.counts.num_hits, cache.counts.num_misses) == (4, 5)
        write(store, config, view, 1, START_US + 1, 5.0)
        wait_for(lambda: read(cache, config, view, 1).values.tolist() == [[5, 5]])
        assert read(cache, config, view, 1).event_us.tolist() == [START_US + 1]
        cache.disconnect()

    def test_any_writes_are_seen_through_a_cache(self, store, config):
        view = make_view("cached_law")
        prepare(store, config, view)
        cache = RowCache(type(store)(), max_age_s=600, max_rows=3)
        at_us = START_US

        @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(st.lists(st.tuples(st.integers(1, 5), st.booleans()), min_size=1, max_size=12))
        def check(steps: list[tuple[int, bool]]) -> None:
            nonlocal at_us
            for rider_id, is_write in steps:
                at_us += 1
                if is_write:
                    write(store, config, view, rider_id, at_us, float(at_us))
                stored = read(store, config, view, 1, 2, 3, 4, 5)

                def same(stored=stored) -> bool:
                    found = read(cache, config, view, 1, 2, 3, 4, 5)
                    return np.array_equal(found.values, stored.values, equal_nan=True)

                wait_for(same)

        check()
        cache.disconnect()

    def test_without_notes_of_writes_a_cache_would_be_out_of_date(self, store, config, monkeypatch):
        view = make_view("cached_unwatched")
        prepare(store, config, view)
        write(store, config, view, 1, START_US, 1.0)
        cache = RowCache(type(store)(), max_age_s=0.2)
        read(cache, config, view, 1)
        monkeypatch.setattr(cache._changes, "take", list)
        read(cache, config, view, 1)
        write(store, config, view, 1, START_US + 1, 5.0)
        assert read(cache, config, view, 1).values.tolist() == [[1, 1]]
        # The age is what is left then.
        wait_for(lambda: read(cache, config, view, 1).values.tolist() == [[5, 5]])
        cache.disconnect()
