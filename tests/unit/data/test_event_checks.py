import dataclasses
from datetime import UTC, datetime

import orjson
import pandera.polars as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_room import SPILLS
from penstock.data.checks import ROW
from penstock.data.event_checks import check_events
from penstock.data.events import Event

GOOD = {"id": 1, "at": "2024-05-01T12:00:00Z", "litres": 1.5, "gate": "north", "open": True}
NOW_US = int(datetime(2024, 5, 1, 12, 5, tzinfo=UTC).timestamp()) * 1_000_000


def event(value: object, offset: int = 0) -> Event:
    raw = value if isinstance(value, bytes) else orjson.dumps(value)
    return Event("log", offset, offset + 1, raw)


def checked(*values: object, table=SPILLS):
    events = [event(value, offset) for offset, value in enumerate(values)]
    return check_events(events, table, latest_us=NOW_US)


class TestCheckEvents:
    def test_good_events_keep_their_places(self):
        found = checked(GOOD, b"no JSON", GOOD | {"id": 2})
        assert found.kept["id"].to_list() == [1, 2]
        assert found.kept[ROW].to_list() == [0, 2]

    @pytest.mark.parametrize(
        ("value", "column", "rule"),
        [
            (b"", "*", "json"),
            (b'{"id": 1', "*", "json"),
            (b"\xff\xfe", "*", "json"),
            ([GOOD], "*", "json"),
            (None, "*", "json"),
            (GOOD | {"id": "1"}, "id", "type"),
            (GOOD | {"id": [1]}, "id", "type"),
            (GOOD | {"gate": "east"}, "gate", "isin(['north', 'south'])"),
            ({"id": 1}, "at", "not_nullable"),
            (GOOD | {"at": "2024-05-01T12:05:01Z"}, "at", "clock"),
            (GOOD | {"at": "9999-12-31T23:59:59Z"}, "at", "type"),
        ],
    )
    def test_a_bad_event_is_told_with_its_rule(self, value, column, rule):
        found = checked(GOOD, value)
        assert found.kept.height == 1
        assert found.bad.select("row", "column", "rule").rows() == [(1, column, rule)]

    def test_a_field_too_many_is_left_aside_unless_the_contract_is_strict(self):
        more = GOOD | {"colour": "blue"}
        assert checked(more).kept.height == 1
        strict = pa.DataFrameSchema(dict(SPILLS.schema.columns), strict=True)
        found = checked(more, table=dataclasses.replace(SPILLS, schema=strict))
        assert found.bad.select("rule", "value").rows() == [("columns", "colour")]

    def test_a_long_broken_event_is_kept_in_part(self):
        found = checked(b"x" * 100_000)
        assert len(found.bad["record"][0]) == 10_000

    @settings(max_examples=100, deadline=None)
    @given(st.lists(st.binary(max_size=30) | st.just(orjson.dumps(GOOD)), max_size=8))
    def test_every_event_is_kept_or_told_apart(self, values):
        found = checked(*values)
        places = [*found.kept[ROW].to_list(), *found.bad["row"].to_list()]
        assert sorted(places) == list(range(len(values)))
