import json
from typing import Any

import orjson
import pandera.polars as pa
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.data.contracts import Table
from penstock.data.event_checks import check_events
from penstock.data.events import MAX_EVENT_BYTES, Event
from penstock.errors import RequestError
from penstock.serving.event_bodies import read_events


def make_table(*, strict: bool = False) -> Table:
    return Table(
        name="shop.orders",
        event_time="at",
        key=("id",),
        schema=pa.DataFrameSchema(
            {
                "id": pa.Column(pl.Int32),
                "at": pa.Column(pl.Datetime("us", "UTC")),
                "amount": pa.Column(pl.Float64, pa.Check.ge(0)),
                "is_gift": pa.Column(pl.Boolean, nullable=True),
                "note": pa.Column(pl.String, nullable=True),
            },
            strict=strict,
        ),
    )


TABLE = make_table()
ORDER = {"id": 1, "at": "2026-01-01T00:00:00Z", "amount": 2.5, "is_gift": None, "note": "ä"}
_TEXT = orjson.dumps(ORDER).decode()


def read(body: Any, *, is_lines: bool = False, table: Table = TABLE) -> list[bytes]:
    given = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_events(given, table, is_lines=is_lines)


def refusal(body: Any, **how: Any) -> RequestError:
    with pytest.raises(RequestError) as refused:
        read(body, **how)
    return refused.value


class TestForms:
    def test_an_array_one_object_and_lines_are_the_same(self):
        one = [orjson.dumps(ORDER)]
        assert read([ORDER]) == read(ORDER) == one
        assert read(f"{_TEXT}\n\n {_TEXT}".encode(), is_lines=True) == one * 2

    def test_columns_that_the_table_has_not_are_left_aside(self):
        assert read([{**ORDER, "more": {"a": [1]}}]) == [orjson.dumps(ORDER)]

    def test_unless_the_table_is_strict(self):
        refused = refusal([{**ORDER, "more": 1}], table=make_table(strict=True))
        assert (refused.status, refused.code, refused.path) == (422, "unknown_key", "$[0]")

    @pytest.mark.parametrize("body", [b"[]", b""])
    def test_no_event_is_refused(self, body: bytes):
        assert refusal(body, is_lines=not body).code == "no_events"

    @pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[" * 100_000, b"[1] [2]"])
    def test_what_is_no_json_is_400(self, body: bytes):
        assert refusal(body).status == 400

    def test_a_broken_line_is_named(self):
        refused = refusal(f"{_TEXT}\n{{".encode(), is_lines=True)
        assert refused.status == 400
        assert refused.message.startswith("line 2: ")


class TestTypes:
    @pytest.mark.parametrize(
        ("column", "value", "code"),
        [
            ("id", '"1"', "wrong_type"),
            ("id", "1.0", "wrong_type"),
            ("id", "true", "wrong_type"),
            ("id", "2147483648", "wrong_type"),
            ("id", "9" * 30, "out_of_range"),
            ("id", "null", "null"),
            ("at", "1533722400", "wrong_type"),
            ("at", '"yesterday"', "wrong_type"),
            ("at", '"2026-02-30"', "wrong_type"),
            ("amount", "NaN", "not_finite"),
            ("amount", "-Infinity", "not_finite"),
            ("amount", "1e999", "out_of_range"),
            ("amount", '"2"', "wrong_type"),
            ("amount", "[2]", "wrong_type"),
            ("amount", '{"a":1,"a":1}', "duplicate_key"),
            ("is_gift", "0", "wrong_type"),
            ("note", "7", "wrong_type"),
            ("note", r'"\ud800"', "out_of_range"),
        ],
    )
    def test_a_value_of_another_type_is_told_with_row_and_column(self, column, value, code):
        fields = {name: json.dumps(given) for name, given in ORDER.items()} | {column: value}
        bad = "{" + ",".join(f'"{name}":{text}' for name, text in fields.items()) + "}"
        refused = refusal(f"[{_TEXT},{bad},{bad}]".encode())
        assert (refused.status, refused.code) == (422, code)
        assert refused.path == f"$[1].{column}"
        assert refused.message.isascii()

    def test_a_missing_column_is_told(self):
        refused = refusal([ORDER, {k: v for k, v in ORDER.items() if k != "note"}])
        assert (refused.code, refused.path) == ("missing_column", "$[1]")

    @pytest.mark.parametrize("given", [1, "x", None, [ORDER], [[ORDER]], True])
    def test_what_is_no_object_is_told(self, given: Any):
        assert refusal([given]).code == "wrong_type"

    def test_a_key_given_twice_is_refused(self):
        refused = refusal(f'[{_TEXT[:-1]},"id":2}}]'.encode())
        assert (refused.code, refused.path) == ("duplicate_key", "$[0]")

    def test_values_that_break_a_rule_are_for_the_stream_to_set_aside(self):
        assert len(read([{**ORDER, "amount": -1}])) == 1

    def test_an_event_too_large_for_a_stream_is_refused(self):
        refused = refusal([{**ORDER, "note": "x" * MAX_EVENT_BYTES}])
        assert (refused.status, refused.code) == (422, "too_large")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)


MOMENTS = st.builds(
    lambda at, mark, zone: at.isoformat(sep=mark) + zone,
    st.datetimes(),
    st.sampled_from("T "),
    st.sampled_from(["", "Z", "+00:00", "-11:30", "+23:59", "+24:00", "+0100"]),
)


class TestLaws:
    @given(body=st.binary(max_size=60) | st.text('{}[]":,0123.eE+-nulidatmo\n', max_size=60))
    def test_any_bytes_are_taken_or_refused(self, body: bytes | str):
        raw = body if isinstance(body, bytes) else body.encode()
        for is_lines in (False, True):
            try:
                read(raw, is_lines=is_lines)
            except RequestError as error:
                assert error.status in (400, 422)

    @given(
        rows=st.lists(
            st.fixed_dictionaries(
                {
                    "id": st.integers(-(2**33), 2**33) | VALUES,
                    "at": MOMENTS | VALUES,
                    "amount": st.floats(0, 1e9) | VALUES,
                    "is_gift": st.booleans() | VALUES,
                    "note": st.text() | VALUES,
                }
            ),
            min_size=1,
            max_size=3,
        )
    )
    def test_what_is_taken_meets_no_type_fault_in_the_stream(self, rows: list[dict]):
        try:
            events = read(json.dumps(rows).encode("utf-8", errors="surrogatepass"))
        except RequestError:
            return
        taken = [Event("p", n, n + 1, value) for n, value in enumerate(events)]
        checked = check_events(taken, TABLE, latest_us=2**62)
        assert checked.kept.height + checked.bad.height == len(rows)
        assert set(checked.bad["rule"]) <= {"greater_than_or_equal_to(0)"}
