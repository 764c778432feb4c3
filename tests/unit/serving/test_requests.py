import json
import math
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import RequestError
from penstock.registry.package import RequestField
from penstock.serving.requests import RequestParser

FIELDS = [
    RequestField(name="STATION", dtype="int64"),
    RequestField(name="LEVEL", dtype="float64"),
    RequestField(name="OPEN", dtype="bool"),
    RequestField(name="KIND", dtype="string"),
    RequestField(name="MOMENT", dtype="timestamp"),
]
GOOD = {
    "STATION": "7",
    "LEVEL": "12.5",
    "OPEN": "true",
    "KIND": '"weir"',
    "MOMENT": '"2018-08-08T10:00:00Z"',
}
PARSER = RequestParser(
    FIELDS, max_rows=3, max_body_bytes=10_000, feature_names=("LEVEL", "inflow", "inflow_7d")
)


def body_with(**changes: str | None) -> bytes:
    """One row in JSON text; a field set to None is left out."""
    fields = {**GOOD, **changes}
    row = ",".join(f'"{name}":{value}' for name, value in fields.items() if value is not None)
    return f'{{"rows":[{{{row}}}]}}'.encode()


def refusal(body: bytes) -> RequestError:
    with pytest.raises(RequestError) as caught:
        PARSER.parse(body)
    return caught.value


class TestWhatIsTaken:
    def test_each_type_arrives_as_its_own(self):
        (row,) = PARSER.parse(body_with())
        assert row == {
            "STATION": 7,
            "LEVEL": 12.5,
            "OPEN": True,
            "KIND": "weir",
            "MOMENT": datetime(2018, 8, 8, 10, tzinfo=UTC),
        }
        assert [type(row[f.name]) for f in FIELDS] == [int, float, bool, str, datetime]

    def test_a_whole_number_is_a_float_too(self):
        (row,) = PARSER.parse(body_with(LEVEL="3"))
        assert type(row["LEVEL"]) is float

    @pytest.mark.parametrize("value", [-(2**63), 2**63 - 1])
    def test_64_bits_are_enough(self, value: int):
        assert PARSER.parse(body_with(STATION=str(value)))[0]["STATION"] == value

    @pytest.mark.parametrize(
        ("text", "moment"),
        [
            ("2018-08-08T10:00:00", datetime(2018, 8, 8, 10, tzinfo=UTC)),
            ("2018-08-08 10:00", datetime(2018, 8, 8, 10, tzinfo=UTC)),
            ("2018-08-08T12:00:00+02:00", datetime(2018, 8, 8, 10, tzinfo=UTC)),
            ("2018-08-08T10:00:00.25Z", datetime(2018, 8, 8, 10, 0, 0, 250_000, UTC)),
        ],
    )
    def test_a_time_is_iso_8601_and_utc_where_it_has_no_zone(self, text: str, moment: datetime):
        assert PARSER.parse(body_with(MOMENT=f'"{text}"'))[0]["MOMENT"] == moment


class TestFeaturesThatARowBrings:
    def test_they_stand_beside_the_fields(self):
        (row,) = PARSER.parse(body_with(inflow="3", inflow_7d="-0.5"))
        assert (row["inflow"], row["inflow_7d"], row["LEVEL"]) == (3.0, -0.5, 12.5)
        assert len(row) == len(FIELDS) + 2

    def test_null_says_that_there_is_none(self):
        (row,) = PARSER.parse(body_with(inflow="null"))
        assert math.isnan(row["inflow"])

    def test_a_feature_that_is_a_field_too_is_a_field(self):
        assert refusal(body_with(LEVEL="null")).code == "wrong_type"

    @pytest.mark.parametrize(
        ("value", "code"), [('"3"', "wrong_type"), ("NaN", "not_finite"), ("1e999", "out_of_range")]
    )
    def test_what_is_no_number_is_refused_with_its_path(self, value: str, code: str):
        error = refusal(body_with(inflow=value))
        assert (error.status, error.code, error.path) == (422, code, "$.rows[0].inflow")

    def test_they_are_no_fields_that_must_be_there(self):
        error = refusal(body_with(inflow="1", KIND=None))
        assert (error.code, error.message) == ("missing_field", "the field KIND is missing")

    def test_what_is_neither_is_still_refused(self):
        error = refusal(body_with(inflow="1", DEPTH="1"))
        assert error.code == "unknown_key"
        assert error.message.startswith("'DEPTH' is no field")


class TestWhatIsRefused:
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"{",
            b'{"rows":[}',
            b"\xff\xfe{}",
            b'{"rows": "\xc3\x28"}',
            b"\xef\xbb\xbf{}",
            '{"rows":[]}'.encode("utf-16"),
            b"[" * 5_000,
            b'{"rows":' + b"[" * 4_000 + b"]" * 4_000 + b"}",
            b'{"rows":[]} {}',
        ],
    )
    def test_what_is_no_json_text_is_400(self, body: bytes):
        assert (refusal(body).status, refusal(body).code) == (400, "unreadable")

    def test_a_body_beyond_the_limit_is_413(self):
        assert refusal(b" " * 10_001).status == 413

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"LEVEL": "NaN"}, "not_finite"),
            ({"LEVEL": "Infinity"}, "not_finite"),
            ({"STATION": "-Infinity"}, "not_finite"),
            ({"LEVEL": "1e999"}, "out_of_range"),
            ({"LEVEL": "-1e999"}, "out_of_range"),
            ({"LEVEL": "9223372036854775808"}, "out_of_range"),
            ({"STATION": "9223372036854775808"}, "out_of_range"),
            ({"STATION": '"7"'}, "wrong_type"),
            ({"STATION": "true"}, "wrong_type"),
            ({"STATION": "7.0"}, "wrong_type"),
            ({"STATION": "null"}, "wrong_type"),
            ({"LEVEL": "false"}, "wrong_type"),
            ({"LEVEL": '"1.5"'}, "wrong_type"),
            ({"LEVEL": "[1]"}, "wrong_type"),
            ({"OPEN": "1"}, "wrong_type"),
            ({"KIND": "1"}, "wrong_type"),
            ({"KIND": '"\\ud800"'}, "wrong_type"),
            ({"LEVEL": '{"a":1,"a":2}'}, "duplicate_key"),
            ({"MOMENT": "1533722400"}, "wrong_type"),
            ({"MOMENT": '"2018-08-08"'}, "bad_timestamp"),
            ({"MOMENT": '"08/08/2018 10:00"'}, "bad_timestamp"),
            ({"MOMENT": '"2018-02-30T10:00:00Z"'}, "bad_timestamp"),
            ({"MOMENT": '"2018-08-08T10:00:60Z"'}, "bad_timestamp"),
            ({"MOMENT": '"0001-01-01T00:00:00+14:00"'}, "bad_timestamp"),
            ({"MOMENT": '"٢٠١٨-٠٨-٠٨T10:00:00Z"'}, "bad_timestamp"),
        ],
    )
    def test_a_value_that_does_not_fit_is_422_with_its_path(self, changes: dict, code: str):
        error = refusal(body_with(**changes))
        (field,) = changes
        assert (error.status, error.code, error.path) == (422, code, f"$.rows[0].{field}")

    def test_an_integer_of_thousands_of_digits_is_422(self):
        error = refusal(body_with(STATION="1" * 5_000))
        assert (error.status, error.code) == (422, "out_of_range")

    @pytest.mark.parametrize(
        ("body", "code", "path"),
        [
            (b"[]", "wrong_type", "$"),
            (b"7", "wrong_type", "$"),
            (b"NaN", "not_finite", "$"),
            (b"{}", "missing_field", "$"),
            (b'{"rows":[],"rows":[]}', "duplicate_key", "$"),
            (b'{"rows":[],"more":1}', "unknown_key", "$"),
            (b'{"rows":{}}', "wrong_type", "$.rows"),
            (b'{"rows":[]}', "no_rows", "$.rows"),
            (b'{"rows":[1,2,3,4]}', "too_many_rows", "$.rows"),
            (b'{"rows":[1]}', "wrong_type", "$.rows[0]"),
            (b'{"rows":[{}]}', "missing_field", "$.rows[0]"),
            (b'{"rows":[{"STATION":1,"STATION":1}]}', "duplicate_key", "$.rows[0]"),
        ],
    )
    def test_a_wrong_shape_is_422_with_its_path(self, body: bytes, code: str, path: str):
        error = refusal(body)
        assert (error.status, error.code, error.path) == (422, code, path)

    def test_an_unknown_key_is_named_with_what_is_allowed(self):
        error = refusal(body_with(DEPTH="1"))
        assert (error.code, error.path) == ("unknown_key", "$.rows[0]")
        assert "'DEPTH'" in error.message
        assert "STATION, LEVEL, OPEN, KIND, MOMENT" in error.message

    def test_a_missing_field_is_named(self):
        error = refusal(body_with(LEVEL=None))
        assert (error.code, error.message) == ("missing_field", "the field LEVEL is missing")

    def test_ragged_rows_are_refused_at_the_row_that_differs(self):
        whole = body_with().decode()[len('{"rows":[') : -len("]}")]
        error = refusal(f'{{"rows":[{whole},{{"STATION":1}}]}}'.encode())
        assert (error.code, error.path) == ("missing_field", "$.rows[1]")

    def test_a_key_of_half_a_surrogate_pair_can_still_be_answered(self):
        error = refusal(body_with(**{"\\ud800": "1"}))
        assert error.code == "unknown_key"
        error.message.encode("ascii")

    def test_a_field_of_a_type_that_no_request_can_carry_fails_at_once(self):
        class Blob:
            name, dtype = "PICTURE", "bytes"

        with pytest.raises(ValueError, match="bytes"):
            RequestParser([Blob()], max_rows=1, max_body_bytes=1)


# A busy machine is no failure.
UNHURRIED = settings(deadline=None)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)
FIELD_NAMES = st.sampled_from([f.name for f in FIELDS]) | st.text()
TIMES = st.datetimes().map(str) | st.from_regex(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9:.+Z-]*")
ROWS = st.dictionaries(FIELD_NAMES, JSON | TIMES)


def is_answered(body: bytes) -> None:
    """Rows come out, or a refusal that can be sent; nothing else ever."""
    try:
        rows = PARSER.parse(body)
    except RequestError as error:
        assert error.status in (400, 413, 422)
        assert error.code
        json.dumps([error.code, error.message, error.path]).encode("ascii")
    else:
        assert 1 <= len(rows) <= 3
        assert all(set(row) == set(GOOD) for row in rows)


@UNHURRIED
@given(st.binary())
def test_any_bytes_are_answered(body: bytes):
    is_answered(body)


@UNHURRIED
@given(JSON)
def test_any_json_is_answered(document: object):
    is_answered(json.dumps(document).encode())


@settings(deadline=None, max_examples=40)
@given(st.lists(ROWS, max_size=5))
def test_any_rows_are_answered(rows: list):
    is_answered(json.dumps({"rows": rows}).encode("utf-8", errors="replace"))


@UNHURRIED
@given(st.text(alphabet='{}[]":,0123456789.eE+-NaInfity\\u d8rows'))
def test_anything_that_looks_like_json_is_answered(text: str):
    is_answered(text.encode())


@UNHURRIED
@given(st.integers(), st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_arrive_unchanged_or_are_refused(station: int, level: float):
    body = body_with(STATION=str(station), LEVEL=repr(level))
    if -(2**63) <= station < 2**63:
        (row,) = PARSER.parse(body)
        assert (row["STATION"], row["LEVEL"]) == (station, level)
    else:
        assert refusal(body).status == 422
