from datetime import datetime, timedelta

import polars as pl
import pytest

from penstock.errors import DataError, DeclarationError
from penstock.features import point_in_time
from penstock.features.point_in_time import join
from worlds import labels_of, side, source_of


def test_a_value_is_valid_to_the_last_instant_of_its_ttl():
    rows = source_of([("a", 1, 0, 0)])
    labels = labels_of([("a", 1, 3), ("a", 1, 4)])
    got = join(labels, [side(rows, "who", ttl=timedelta(seconds=3))], event_time="at")
    assert got["v"].to_list() == [0, None]


def test_a_late_correction_wins_unless_it_was_not_known_yet():
    rows = source_of([("a", 1, 0, 0), ("a", 1, 0, 10)])
    labels = labels_of([("a", 1, 5), ("a", 1, 10)])
    view = side(rows, "who", created_time="made")
    assert join(labels, [view], event_time="at")["v"].to_list() == [1, 1]
    known = join(labels, [view], event_time="at", known_at_label_time=True)
    assert known["v"].to_list() == [0, 1]


def test_join_keys_may_have_other_names_in_the_labels():
    labels = labels_of([("a", 1, 5)]).rename({"who": "sender"}).with_columns(receiver=pl.lit("b"))
    rows = source_of([("a", 1, 0, 0), ("b", 1, 0, 0)])
    views = [
        side(rows, name=name, join_keys=(name,), source_keys=("who",), features={f"{name}_v": "v"})
        for name in ("sender", "receiver")
    ]
    got = join(labels, views, event_time="at")
    assert got.select("sender_v", "receiver_v").row(0) == (0, 1)


@pytest.mark.parametrize(("unit", "zone"), [("ms", None), ("us", "Asia/Tokyo"), ("ns", "UTC")])
@pytest.mark.parametrize("other", ["ms", "us", "ns"])
def test_zones_and_precisions_may_differ(unit, zone, other):
    at = (
        pl.col("at").dt.convert_time_zone(zone) if zone else pl.col("at").dt.replace_time_zone(None)
    )
    labels = labels_of([("a", 1, 5), ("a", 1, 1)]).with_columns(at.dt.cast_time_unit(unit))
    rows = source_of([("a", 1, 0, 0), ("a", 1, 5, 0), ("a", 1, 6, 0)])
    rows = rows.with_columns(pl.col("when").dt.cast_time_unit(other).dt.replace_time_zone(None))
    got = join(labels, [side(rows, "who", ttl=timedelta(seconds=4))], event_time="at")
    assert got["v"].to_list() == [1, 0]
    assert got.select(labels.columns).equals(labels)


def test_a_value_one_nanosecond_in_the_future_is_not_seen():
    labels = labels_of([("a", 1, 0)])
    when = labels["at"].cast(pl.Datetime("ns", "UTC")) + pl.duration(nanoseconds=1)
    rows = source_of([("a", 1, 0, 0)]).with_columns(pl.select(when).to_series().alias("when"))
    assert join(labels, [side(rows, "who")], event_time="at")["v"].to_list() == [None]


def test_years_beyond_what_nanoseconds_hold_keep_their_order():
    old, far = datetime(1, 1, 1), datetime(9999, 12, 31)
    rows = pl.DataFrame({"who": ["a", "a"], "when": [old, far], "v": [0, 1]})
    labels = pl.DataFrame({"who": ["a"], "at": pl.Series([0]).cast(pl.Datetime("ns"))})
    assert join(labels, [side(rows, "who")], event_time="at")["v"].to_list() == [0]


def test_whole_numbers_that_pandas_made_floats_still_match():
    labels = labels_of([("a", 1, 5), ("a", None, 5), ("a", 2, 5)])
    labels = labels.with_columns(pl.col("shop").cast(pl.Float64))
    labels = labels.vstack(labels.head(1).with_columns(shop=pl.lit(1.5)))
    rows = source_of([("a", 1, 0, 0)])
    got = join(labels, [side(rows, "shop")], event_time="at")
    assert got["v"].to_list() == [0, None, None, None]


@pytest.mark.parametrize("dtype", [pl.Int8, pl.UInt64, pl.Int32])
def test_keys_of_other_widths_match(dtype):
    labels = labels_of([("a", 1, 5)]).with_columns(pl.col("shop").cast(dtype))
    got = join(labels, [side(source_of([("a", 1, 0, 0)]), "shop")], event_time="at")
    assert got["v"].to_list() == [0]


def test_categories_match_text():
    labels = labels_of([("a", 1, 5)]).with_columns(pl.col("who").cast(pl.Categorical))
    got = join(labels, [side(source_of([("a", 1, 0, 0)]), "who")], event_time="at")
    assert got["v"].to_list() == [0]


def test_text_never_matches_a_number_so_it_is_refused():
    labels = labels_of([("a", 1, 5)]).with_columns(pl.col("shop").cast(pl.String))
    with pytest.raises(DataError, match="'shop' is String"):
        join(labels, [side(source_of([]), "shop")], event_time="at")


def test_labels_may_be_lazy():
    labels = labels_of([("a", 1, 5)])
    view = side(source_of([("a", 1, 0, 0)]), "who")
    lazy = join(labels.lazy(), [view], event_time="at")
    assert lazy.equals(join(labels, [view], event_time="at"))


def test_a_name_that_would_stand_twice_is_refused():
    view = side(source_of([]), "who", features={"shop": "v"})
    with pytest.raises(DeclarationError, match="shop more than once"):
        join(labels_of([]), [view], event_time="at")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"join_keys": ("whom",)}, "labels have no column 'whom'"),
        ({"source_keys": ("whom",)}, "view 'view_v' have no column 'whom'"),
        ({"event_time": "then"}, "no column 'then'"),
        ({"created_time": "then"}, "no column 'then'"),
        ({"features": {"v": "w"}}, "no column 'w'"),
        ({"event_time": "v"}, "a time column is Int64"),
    ],
)
def test_a_plan_refuses_what_cannot_be_joined_before_it_reads(change, message):
    view = side(source_of([]), "who", **change)
    with pytest.raises(DataError, match=message):
        point_in_time.plan(labels_of([]).schema, [view], event_time="at")


def test_a_filter_by_time_reaches_the_reader(tmp_path):
    source_of([("a", 1, t, 0) for t in range(100)]).write_parquet(tmp_path / "v.parquet")
    seen = []
    lazy = pl.scan_parquet(tmp_path / "v.parquet").map_batches(
        lambda batch: (seen.append(batch.height), batch)[1], predicate_pushdown=True
    )
    view = side(source_of([]), "who", frame=lazy, ttl=timedelta(seconds=5))
    got = join(labels_of([("a", 1, 50)]), [view], event_time="at")
    assert got["v"].to_list() == [50]
    assert sum(seen) < 10
