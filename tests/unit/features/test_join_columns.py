from datetime import timedelta

import polars as pl
import pytest

from penstock.errors import DataError
from penstock.features.join_columns import align_keys, finest_unit, ticks, ticks_of


def test_one_nanosecond_column_makes_the_whole_join_nanoseconds():
    assert finest_unit([pl.Datetime("us"), pl.Datetime("ms", "UTC")]) == "us"
    assert finest_unit([pl.Datetime("us"), pl.Datetime("ns")]) == "ns"


def test_text_is_no_time():
    with pytest.raises(DataError, match="String"):
        finest_unit([pl.String()])


@pytest.mark.parametrize("unit", ["us", "ns"])
def test_dates_and_all_precisions_tick_alike(unit):
    day = pl.Series("t", [1]).cast(pl.Int32).cast(pl.Date)
    wanted = 86_400 * 10**6 * (1000 if unit == "ns" else 1)
    for dtype in (pl.Date(), pl.Datetime("ms"), pl.Datetime("us", "UTC"), pl.Datetime("ns")):
        if dtype == pl.Datetime("ns") and unit == "us":
            continue
        frame = day.cast(pl.Datetime("us")).cast(dtype).to_frame()
        assert frame.select(ticks("t", dtype, unit)).item() == wanted


def test_a_ttl_of_zero_never_ends():
    assert ticks_of(timedelta(0), "us") is None
    assert ticks_of(timedelta(seconds=1), "ns") == 10**9


def test_equal_types_are_left_alone():
    left, right = align_keys("a", pl.Int64(), "b", pl.Int64(), "view")
    assert left.meta.is_column()
    assert right.meta.is_column()


@pytest.mark.parametrize(
    ("ours", "theirs", "matches"),
    [
        (pl.Series([7, 8]), pl.Series(["7.00", "8.50"]).cast(pl.Decimal(10, 2)), [7]),
        (
            pl.Series(["7.50", "8.50"]).cast(pl.Decimal(10, 2)),
            pl.Series(["7.5", "8.0"]).cast(pl.Decimal(10, 1)),
            [7.5],
        ),
        (pl.Series([7.5, 8.0]), pl.Series(["7.50", "8.25"]).cast(pl.Decimal(10, 2)), [7.5]),
    ],
)
def test_a_decimal_matches_what_it_equals_and_is_never_cut(ours, theirs, matches):
    left, right = align_keys("a", ours.dtype, "b", theirs.dtype, "view")
    mine = ours.alias("a").to_frame().select(k=left)
    found = mine.join(theirs.alias("b").to_frame().select(k=right), on="k")
    assert found["k"].cast(pl.Float64).to_list() == matches
