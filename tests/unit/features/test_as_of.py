from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features.as_of import last_of_each, last_rows

INTS = st.integers(-3, 3)
KEY_KINDS: list[tuple[Any, ...]] = [
    (pl.Int64, INTS),
    (pl.Int8, st.integers(-128, 127)),
    (pl.Int64, st.sampled_from([-(2**63), -1, 0, 2**40, 2**63 - 1])),
    (pl.UInt64, st.sampled_from([0, 1, 2**64 - 1])),
    (pl.String, st.sampled_from(["", "a", "b"])),
    (pl.Boolean, st.booleans()),
]


@st.composite
def worlds(draw):
    kinds = draw(st.lists(st.sampled_from(KEY_KINDS), max_size=2))
    key = st.tuples(*(values for _, values in kinds))
    label_key = st.tuples(*(st.none() | values for _, values in kinds))
    times = st.integers(0, 9)
    rows = sorted(draw(st.lists(st.tuples(times, key), max_size=25)), key=lambda row: row[0])
    labels = sorted(draw(st.lists(st.tuples(times, label_key), max_size=25)), key=lambda x: x[0])
    return [dtype for dtype, _ in kinds], labels, rows


def side(dtypes, given_rows):
    schema = {f"__key{i}": dtype for i, dtype in enumerate(dtypes)}
    keys = pl.DataFrame([key for _, key in given_rows], schema=schema, orient="row")
    return pl.Series([time for time, _ in given_rows], dtype=pl.Int64), keys


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_every_label_meets_the_last_row_of_its_keys(world):
    dtypes, labels, rows = world
    wanted = [
        max((n for n, (at, k) in enumerate(rows) if at <= time and k == key), default=-1)
        for time, key in labels
    ]
    assert last_rows(*side(dtypes, labels), *side(dtypes, rows)).tolist() == wanted


@settings(max_examples=120, deadline=None)
@given(worlds())
def test_the_last_row_of_every_entity_is_found(world):
    dtypes, _, rows = world
    _, keys = side(dtypes, rows)
    if keys.width:
        last = {key: number for number, (_, key) in enumerate(rows)}
        assert last_of_each(keys).tolist() == sorted(last.values())


@pytest.mark.parametrize("num_keys", [10, 70_000])
def test_it_agrees_with_polars_on_many_rows(num_keys):
    rows = pl.select(
        __key0=pl.int_range(200_000).hash(1) % num_keys, at=pl.int_range(200_000) // 3
    ).cast(pl.Int64)
    labels = pl.select(
        __key0=pl.int_range(100_000).hash(2) % (2 * num_keys), at=pl.int_range(100_000)
    ).cast(pl.Int64)
    theirs = labels.join_asof(
        rows.with_row_index("row"), on="at", by="__key0", check_sortedness=False
    )["row"]
    ours = last_rows(labels["at"], labels.select("__key0"), rows["at"], rows.select("__key0"))
    assert ours.tolist() == theirs.cast(pl.Int64).fill_null(-1).to_list()
