import math
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.errors import DataError, DeclarationError
from penstock.features.windows import Aggregation, Windows, compute

START = datetime(2024, 2, 28, tzinfo=UTC)
KINDS = ("count", "sum", "mean", "min", "max", "std", "share", "last")


def windows(
    column: str = "value", widths: tuple[int, ...] = (3, 10), delay: int = 0, **more: Any
) -> Windows:
    """Every kind of aggregation of one column, over widths in seconds."""
    return Windows(
        entity=more.pop("entity", ("who",)),
        event_time="at",
        widths={f"{w}s": timedelta(seconds=w) for w in widths},
        aggregations=(
            Aggregation(kind="count", name="events_{window}"),
            *(Aggregation(kind=k, column=column, name=k + "_{window}") for k in KINDS),
        ),
        delay=timedelta(seconds=delay),
    )


def frame(rows: list[tuple[Any, ...]], value: Any = pl.Float64) -> pl.DataFrame:
    """Rows of (who, seconds after START, value)."""
    return pl.DataFrame(
        [(w, None if s is None else START + timedelta(seconds=s), v) for w, s, v in rows],
        schema={"who": pl.String, "at": pl.Datetime("us", "UTC"), "value": value},
        orient="row",
    )


def aggregate(kind: str, values: list[Any]) -> Any:
    """What one window's values come to, by the definition alone."""
    n = len(values)
    if kind == "count":
        return n
    if kind == "sum":
        return sum(values) if values and isinstance(values[0], int) else math.fsum(values)
    if kind == "share":
        return sum(1 for v in values if v) / n if n else 0.0
    if n == 0 or (kind == "std" and n < 2):
        return None
    if kind == "last":
        return values[-1]
    if kind in ("min", "max"):
        return (min if kind == "min" else max)(values)
    mean = math.fsum(values) / n
    if kind == "mean":
        return mean
    return math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (n - 1))


def brute_force(rows: list[tuple[Any, ...]], spec: Windows) -> list[dict[str, Any]]:
    """Every window by looking at every event: slow and plain."""
    out = []
    for who, at, _ in rows:
        row: dict[str, Any] = {}
        for label, width in spec.widths.items():
            end = None if at is None else at - spec.delay.total_seconds()
            inside = [
                (s, v)
                for w, s, v in rows
                if None not in (who, at, w, s)
                and w == who
                and end - width.total_seconds() < s <= end
            ]
            # Stable: of equal times the one that stands last in the input stays last.
            inside.sort(key=lambda event: event[0])
            values = [v for _, v in inside if v is not None and v == v]
            for a in spec.aggregations:
                known = who is not None and at is not None
                got = len(inside) if a.column is None else aggregate(a.kind, values)
                row[a.name.replace("{window}", label)] = got if known else None
        out.append(row)
    return out


def assert_same(got: pl.DataFrame, wanted: list[dict[str, Any]]) -> None:
    for name in wanted[0] if wanted else []:
        for row, (a, b) in enumerate(zip(got[name], [w[name] for w in wanted], strict=True)):
            assert (a is None) == (b is None), (name, row, a, b)
            assert a is None or a == pytest.approx(b, rel=1e-9, abs=1e-6), (name, row, a, b)


entities = st.sampled_from(["a", "b", None])
seconds = st.one_of(st.integers(0, 25), st.none())
floats = st.floats(-1e6, 1e6, allow_subnormal=False) | st.just(float("nan"))


@settings(max_examples=80, deadline=None)
@given(
    st.lists(st.tuples(entities, seconds, st.one_of(floats, st.none())), max_size=25),
    st.integers(0, 6),
)
def test_every_aggregation_equals_a_brute_force_over_all_events(rows, delay):
    spec = windows(delay=delay)
    assert_same(compute(frame(rows), spec), brute_force(rows, spec))


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(entities, seconds, st.one_of(st.integers(-(2**40), 2**40), st.none())),
        max_size=25,
    )
)
def test_whole_numbers_stay_whole(rows):
    spec = windows()
    got = compute(frame(rows, pl.Int64), spec)
    assert_same(got, brute_force(rows, spec))
    assert got.schema["sum_3s"] == got.schema["min_3s"] == got.schema["last_3s"] == pl.Int64


def test_booleans_count_as_zero_and_one():
    rows = [("a", 0, True), ("a", 1, False), ("a", 2, None), ("a", 2, True)]
    got = compute(frame(rows, pl.Boolean), windows(widths=(10,)))
    assert got["share_10s"].to_list() == pytest.approx([1.0, 0.5, 2 / 3, 2 / 3])
    assert got["sum_10s"].to_list() == [1, 1, 2, 2]
    assert got["last_10s"].to_list() == [True, False, True, True]


def test_the_window_is_open_at_its_old_end_and_closed_at_its_new_one():
    got = compute(frame([("a", 0, 1.0), ("a", 3, 1.0)]), windows(widths=(3,)))
    assert got["events_3s"].to_list() == [1, 1]
    later = compute(frame([("a", 0, 1.0), ("a", 3, 1.0)]), windows(widths=(3,), delay=3))
    assert later["events_3s"].to_list() == [0, 1]


def test_events_at_the_same_time_belong_to_each_others_window():
    got = compute(frame([("a", 5, 1.0), ("b", 5, 7.0), ("a", 5, 3.0)]), windows(widths=(3,)))
    assert got["mean_3s"].to_list() == [2.0, 7.0, 2.0]


def test_the_newest_value_is_never_one_from_before_the_window():
    rows = [("a", 0, 1.0), ("a", 5, None), ("a", 6, float("nan")), ("b", 6, 8.0), ("b", 6, 9.0)]
    got = compute(frame(rows), windows(widths=(3, 10)))
    assert got["last_3s"].to_list() == [1.0, None, None, 9.0, 9.0]
    assert got["last_10s"].to_list() == [1.0, 1.0, 1.0, 9.0, 9.0]


def test_rows_come_back_in_the_order_they_came_in():
    events = frame([("b", 9, 1.0), ("a", 1, 2.0), ("b", 0, 3.0), ("a", 0, 4.0)])
    got = compute(events, windows())
    assert got.select("who", "at").equals(events.select("who", "at"))
    assert got.columns == ["who", "at", *windows().feature_names()]


def test_no_events_give_no_rows_with_the_same_columns():
    got = compute(frame([]), windows())
    assert got.height == 0
    assert got.columns == ["who", "at", *windows().feature_names()]


def test_a_giant_outside_the_window_leaves_no_trace_in_its_sum():
    rows = [("a", 0, 1e15), ("a", 100, 0.1), ("a", 101, 0.2), ("b", 0, 0.3)]
    got = compute(frame(rows), windows(widths=(3,)))
    assert got["sum_3s"].to_list() == pytest.approx([1e15, 0.1, 0.3, 0.3], rel=1e-7)
    naive = np.cumsum([1e15, 0.1, 0.2])
    assert naive[2] - naive[0] != pytest.approx(0.3, rel=1e-7)


def test_a_constant_has_no_deviation_however_large_it_is():
    got = compute(frame([("a", i, 1e9 + 0.1) for i in range(50)]), windows(widths=(10,)))
    assert max(got["std_10s"].drop_nulls()) < 1e-6


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_every_precision_of_time_gives_the_same_windows(unit):
    rows = [("a", i % 7, float(i)) for i in range(20)]
    events = frame(rows)
    cast = events.with_columns(pl.col("at").dt.cast_time_unit(unit))
    assert compute(cast, windows()).drop("at").equals(compute(events, windows()).drop("at"))


def test_a_nanosecond_decides_whether_an_event_is_in_the_window():
    at = pl.Series([0, 2_999_999_999, 3_000_000_000]).cast(pl.Datetime("ns"))
    events = pl.DataFrame({"who": ["a"] * 3, "at": at, "value": [1.0] * 3})
    assert compute(events, windows(widths=(3,)))["events_3s"].to_list() == [1, 2, 2]


def test_entities_times_years_may_exceed_what_one_sort_key_holds():
    # 300 entities x 100 years of nanoseconds do not fit in 63 bits: blocks take turns.
    day_ns = 86_400 * 10**9
    at = np.tile([0, 1 * 10**9, 36_500 * day_ns], 300)
    who = np.repeat(np.arange(300), 3)
    events = pl.DataFrame({"who": who, "at": pl.Series(at).cast(pl.Datetime("ns"))})
    spec = Windows(
        entity=("who",),
        event_time="at",
        widths={"w": timedelta(seconds=5)},
        aggregations=(Aggregation(kind="count", name="n_{window}"),),
    )
    assert compute(events, spec)["n_w"].to_list() == [1, 2, 1] * 300


def test_an_entity_may_be_made_of_several_columns():
    rows = [("a", 0, 1.0), ("a", 1, 2.0), ("b", 1, 4.0), ("a", 2, 8.0)]
    events = frame(rows).with_columns(shop=pl.Series([1, 2, 1, 1]))
    got = compute(events, windows(entity=("who", "shop"), widths=(10,)))
    assert got["sum_10s"].to_list() == [1.0, 2.0, 4.0, 9.0]


def test_an_infinite_value_is_refused_with_its_column():
    with pytest.raises(DataError, match="'value' holds an infinite"):
        compute(frame([("a", 0, float("inf"))]), windows())


def test_a_column_of_text_is_refused():
    with pytest.raises(DataError, match="cannot take it"):
        compute(frame([("a", 0, "x")], pl.String), windows())


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match="no column 'value'"):
        compute(frame([]).drop("value"), windows())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"widths": {"0": timedelta(0)}}, "wide"),
        ({"widths": {}}, "at least one"),
        ({"delay": timedelta(seconds=-1)}, "delay"),
        ({"aggregations": (Aggregation(kind="count", name="n"),)}, "more than once"),
        ({"aggregations": (Aggregation(kind="count", name="at"),)}, "more than once"),
    ],
)
def test_a_declaration_that_contradicts_itself_is_refused(change, message):
    good: dict[str, Any] = {
        "entity": ("who",),
        "event_time": "at",
        "widths": {"a": timedelta(1), "b": timedelta(2)},
        "aggregations": (Aggregation(kind="count", name="n_{window}"),),
    }
    with pytest.raises(DeclarationError, match=message):
        Windows(**{**good, **change})


def test_only_count_can_do_without_a_column():
    with pytest.raises(DeclarationError, match="names no column"):
        Aggregation(kind="mean", name="m_{window}")
    with pytest.raises(DeclarationError, match="median"):
        Aggregation(kind="median", name="m_{window}", column="value")  # type: ignore[arg-type]  # the point
