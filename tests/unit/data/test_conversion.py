import math
from datetime import UTC, date, datetime
from decimal import Decimal

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.data.contracts import EVENT_TIME
from penstock.data.conversion import convert, fits

BAD = "bad"


def one(value, dtype, zone="UTC"):
    """Convert one value, given as text or as an object; BAD where it cannot be."""
    given_ = pl.Series("c", [value], dtype=pl.String) if isinstance(value, str) else [value]
    converted = convert(given_, dtype, zone=zone)
    return BAD if converted.failed[0] else converted.values[0]


class TestText:
    @pytest.mark.parametrize(
        ("text", "dtype", "expected"),
        [
            ("7", pl.Int64(), 7),
            ("+7", pl.Int64(), 7),
            ("-0", pl.Int64(), 0),
            ("7.0", pl.Int64(), BAD),
            (" 7", pl.Int64(), BAD),
            ("1e3", pl.Int64(), BAD),
            ("1_000", pl.Int64(), BAD),
            ("0x1f", pl.Int64(), BAD),
            ("9223372036854775808", pl.Int64(), BAD),
            ("300", pl.Int8(), BAD),
            ("7", pl.Float64(), 7.0),
            (".5e1", pl.Float64(), 5.0),
            ("1,5", pl.Float64(), BAD),
            ("1e999", pl.Float64(), math.inf),
            ("true", pl.Boolean(), True),
            ("FALSE", pl.Boolean(), False),
            ("1", pl.Boolean(), BAD),
            ("2024-02-29", pl.Date(), date(2024, 2, 29)),
            ("2023-02-29", pl.Date(), BAD),
            ("0000-01-01", pl.Date(), BAD),
            (" as it is ", pl.String(), " as it is "),
        ],
    )
    def test_a_text_is_a_value_of_the_type_or_bad(self, text, dtype, expected):
        assert one(text, dtype) == expected

    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("2024-05-01T12:00:00Z", datetime(2024, 5, 1, 12, tzinfo=UTC)),
            ("2024-05-01 12:00:00.25", datetime(2024, 5, 1, 10, 0, 0, 250_000, tzinfo=UTC)),
            ("2024-05-01T12:00+05:30", datetime(2024, 5, 1, 6, 30, tzinfo=UTC)),
            ("2024-05-01T12:00:00-0100", datetime(2024, 5, 1, 13, tzinfo=UTC)),
            ("2024-05-01", datetime(2024, 4, 30, 22, tzinfo=UTC)),
            ("2024-03-31T02:30:00", BAD),
            ("2024-10-27T02:30:00", BAD),
            ("2024-13-01T00:00:00", BAD),
            ("2024-05-01T25:00:00", BAD),
            ("1714557600", BAD),
            ("yesterday", BAD),
            ("0001-01-01T00:00:00+14:00", BAD),
            ("9999-12-31T23:59:59-14:00", BAD),
        ],
    )
    def test_a_time_is_iso_8601_and_one_without_zone_is_read_in_the_contracts(self, text, expected):
        assert one(text, EVENT_TIME, zone="Europe/Brussels") == expected


class TestObjects:
    @pytest.mark.parametrize(
        ("value", "dtype", "expected"),
        [
            (7, pl.Int64(), 7),
            (True, pl.Int64(), BAD),
            (7.0, pl.Int64(), BAD),
            (2**63, pl.Int64(), BAD),
            pytest.param(2**200, pl.Int64(), BAD, id="wide"),
            (7, pl.Float64(), 7.0),
            (Decimal("1.5"), pl.Float64(), 1.5),
            (True, pl.Float64(), BAD),
            pytest.param(-(10**400), pl.Float64(), -math.inf, id="huge"),
            (1, pl.Boolean(), BAD),
            (7, pl.String(), BAD),
            ([1], pl.String(), BAD),
            ({"a": 1}, pl.Int64(), BAD),
            (1714557600, EVENT_TIME, BAD),
            (datetime(2024, 5, 1, tzinfo=UTC), EVENT_TIME, datetime(2024, 5, 1, tzinfo=UTC)),
            (date(2024, 5, 1), pl.Date(), date(2024, 5, 1)),
            (None, pl.Int64(), None),
        ],
    )
    def test_an_object_is_of_the_contracts_kind_or_bad(self, value, dtype, expected):
        assert one(value, dtype) == expected

    @given(
        st.lists(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(), st.text(),
                st.lists(st.integers(), max_size=2),
            ),
            max_size=8,
        ),
        st.sampled_from([pl.Int8(), pl.Int64(), pl.Float64(), pl.String(), pl.Boolean(), pl.Date(), EVENT_TIME]),
    )  # fmt: skip
    def test_whatever_comes_is_null_bad_or_a_value(self, values, dtype):
        converted = convert(values, dtype, zone="UTC")
        assert converted.values.dtype == dtype
        for value, got, failed in zip(values, converted.values, converted.failed, strict=True):
            assert failed == (value is not None and got is None)


class TestTimes:
    @pytest.mark.parametrize("unit", ["ms", "us", "ns"])
    def test_any_unit_becomes_microseconds_in_utc(self, unit):
        local = pl.Series([datetime(2024, 5, 1, 12)], dtype=pl.Datetime(unit))  # no zone on purpose
        got = convert(local, EVENT_TIME, zone="Europe/Brussels")
        assert got.values[0] == datetime(2024, 5, 1, 10, tzinfo=UTC)

    def test_a_time_with_a_zone_is_converted(self):
        zoned = pl.Series([datetime(2024, 5, 1, 12)]).dt.replace_time_zone("Asia/Tokyo")
        assert convert(zoned, EVENT_TIME, zone="Europe/Brussels").values[0] == datetime(
            2024, 5, 1, 3, tzinfo=UTC
        )

    @pytest.mark.parametrize("unit", ["ms", "us", "ns"])
    def test_a_time_beyond_our_years_is_bad_and_does_not_wrap_around(self, unit):
        far = pl.Series([2**62, -(2**62), None], dtype=pl.Int64).cast(pl.Datetime(unit))
        got = convert(far, EVENT_TIME, zone="UTC")
        if unit == "ns":  # 2**62 nanoseconds end in the year 2116
            assert got.failed.to_list() == [False, False, False]
        else:
            assert got.failed.to_list() == [True, True, False]

    def test_a_date_that_python_does_not_have_is_bad(self):
        far = pl.Series([2**30, 0, None], dtype=pl.Int32).cast(pl.Date)
        assert convert(far, pl.Date(), zone="UTC").failed.to_list() == [True, False, False]


class TestFits:
    def test_only_the_same_type_fits_but_for_units_of_time_and_encodings(self):
        assert fits(pl.Int64(), pl.Int64())
        assert fits(pl.Datetime("ns", "Asia/Tokyo"), EVENT_TIME)
        assert fits(pl.Categorical(), pl.String())
        assert not fits(pl.Int32(), pl.Int64())
        assert not fits(pl.Date(), EVENT_TIME)
