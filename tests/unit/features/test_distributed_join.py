"""One law for all: brute force, one task and many tasks give every label the same values."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.features import point_in_time
from penstock.features.distributed_join import execute, run_here
from penstock.features.point_in_time import ViewSide
from worlds import brute_force, label_rows, labels_of, side, sides_of, source_of, views


def joined(
    labels: pl.DataFrame,
    sides: list[ViewSide],
    scratch: Path,
    *,
    cut_off: bool = False,
    num_buckets: int = 3,
    rows_per_chunk: int = 4,
) -> pl.DataFrame:
    """The labels joined in many small tasks, in this process."""
    checked = point_in_time.plan(labels.schema, sides, event_time="at", known_at_label_time=cut_off)
    lazy = labels.lazy()
    starts = range(0, max(labels.height, 1), rows_per_chunk)
    found = execute(
        checked,
        [lazy.slice(start, rows_per_chunk) for start in starts],
        lambda number, frame: (number, frame),
        num_buckets=num_buckets,
        scratch=scratch,
        run=run_here,
        rows_per_chunk=rows_per_chunk,
    )
    chunks = list(found)
    assert [number for number, _ in chunks] == list(range(len(starts)))
    return pl.concat([frame for _, frame in chunks])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(label_rows, views, st.booleans(), st.integers(1, 5))
def test_brute_force_one_task_and_many_agree(tmp_path, labels, world, cut_off, num_buckets):
    sides = sides_of(world)
    frame = labels_of(labels)
    one = point_in_time.join(frame, sides, event_time="at", known_at_label_time=cut_off)
    many = joined(frame, sides, tmp_path, cut_off=cut_off, num_buckets=num_buckets)
    assert one.select(frame.columns).equals(frame)
    assert many.equals(one)
    for n, (rows, keys, ttl, created) in enumerate(world):
        wanted = brute_force(labels, rows, keys, ttl=ttl, created=created, cut_off=cut_off)
        assert one[f"v{n}"].to_list() == wanted


def test_nothing_is_left_of_the_scratch(tmp_path: Path):
    labels, rows = labels_of([("a", 1, 5)]), source_of([("a", 1, 0, 0)])
    joined(labels, [side(rows, "who")], tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("unit", ["ms", "us", "ns"])
def test_keys_and_times_of_other_types_meet_in_the_same_bucket(tmp_path: Path, unit: Any):
    labels = labels_of([("a", n % 3, n) for n in range(12)]).with_columns(
        pl.col("at").dt.cast_time_unit(unit), pl.col("shop").cast(pl.Float64)
    )
    rows = source_of([("a", n % 3, n, 0) for n in range(12)]).with_columns(
        pl.col("shop").cast(pl.Int8)
    )
    view = side(rows, "shop", ttl=timedelta(seconds=60))
    one = point_in_time.join(labels, [view], event_time="at")
    assert one["v"].null_count() == 0
    assert joined(labels, [view], tmp_path).equals(one)


def test_both_zeros_of_a_float_key_meet(tmp_path: Path):
    labels = labels_of([("a", 0, 5)] * 2).with_columns(shop=pl.Series([0.0, -0.0]))
    rows = source_of([("a", 0, 1, 0)]).with_columns(shop=pl.Series([-0.0]))
    assert joined(labels, [side(rows, "shop")], tmp_path, num_buckets=50)["v"].to_list() == [0, 0]
