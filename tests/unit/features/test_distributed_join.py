"""One law for all: brute force, one task and many tasks give every label the same values."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from penstock.cluster.tasks import run_here
from penstock.features import point_in_time
from penstock.features.distributed_join import execute
from penstock.features.point_in_time import ViewSide
from penstock.progress import Progress, silent
from worlds import brute_force, label_rows, labels_of, side, sides_of, source_of, views


def time_of(row: tuple[Any, ...]) -> int:
    return -1 if row[2] is None else row[2]


def joined(
    labels: pl.DataFrame,
    sides: list[ViewSide],
    scratch: Path,
    *,
    cut_off: bool = False,
    num_buckets: int = 3,
    rows_per_chunk: int = 4,
    progress: Progress = silent,
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
        progress=progress,
    )
    chunks = list(found)
    assert [number for number, _ in chunks] == list(range(len(starts)))
    return pl.concat([frame for _, frame in chunks])


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(label_rows, views, st.booleans(), st.integers(1, 5), st.booleans())
def test_brute_force_one_task_and_many_agree(
    tmp_path, labels, world, cut_off, num_buckets, in_order
):
    if in_order:
        # Most of these are joined by time, most others by entity.
        labels = sorted(labels, key=time_of)
        world = [(sorted(rows, key=time_of), *more) for rows, *more in world]
    sides = sides_of(world)
    frame = labels_of(labels)
    one = point_in_time.join(frame, sides, event_time="at", known_at_label_time=cut_off)
    many = joined(frame, sides, tmp_path, cut_off=cut_off, num_buckets=num_buckets)
    assert one.select(frame.columns).equals(frame)
    assert many.equals(one)
    for n, (rows, keys, ttl, created) in enumerate(world):
        wanted = brute_force(labels, rows, keys, ttl=ttl, created=created, cut_off=cut_off)
        assert one[f"v{n}"].to_list() == wanted


LABELS = tuple(("ab"[n % 2], n % 3, n) for n in range(60))
ROWS = tuple(("ab"[n % 2], n % 3, n - 1, 0) for n in range(60))


class TestPath:
    """Sixty rows in order of time, and the same ones in others."""

    def steps(self, folder: Path, labels: Any, rows: Any, **more: Any) -> set[str]:
        steps = set()
        frame, view = labels_of(labels), side(source_of(rows), "who", **more)
        many = joined(frame, [view], folder, progress=lambda step, *_, **__: steps.add(step))
        assert many.equals(point_in_time.join(frame, [view], event_time="at"))
        return steps

    def test_rows_in_order_of_time_are_joined_by_time(self, tmp_path):
        assert "carry" in self.steps(tmp_path, LABELS, ROWS)
        assert "split labels" not in self.steps(tmp_path, LABELS, ROWS)

    def test_so_are_rows_that_are_in_order_but_for_neighbours(self, tmp_path):
        rows = [row for n in range(0, 60, 3) for row in reversed(ROWS[n : n + 3])]
        assert "split labels" not in self.steps(tmp_path, LABELS, rows)

    def test_and_chunks_of_labels_in_any_order(self, tmp_path):
        labels = [row for n in range(56, -4, -4) for row in LABELS[n : n + 4]]
        assert "split labels" not in self.steps(tmp_path, labels, ROWS)

    @pytest.mark.parametrize("shuffled", ["labels", "rows"])
    def test_others_are_joined_by_entity(self, tmp_path, shuffled):
        sides = {"labels": LABELS, "rows": ROWS}
        sides[shuffled] = sorted(sides[shuffled], key=lambda row: row[2] * 37 % 61)
        steps = self.steps(tmp_path, **sides)
        assert "carry" not in steps
        assert "split labels" in steps

    def test_too_many_entities_to_carry_are_joined_by_entity(self, tmp_path):
        rows = [(f"entity {n}", 1, n, 0) for n in range(60)]
        labels = [(f"entity {n}", 1, n) for n in range(60)]
        assert {"carry", "split labels"} <= self.steps(tmp_path, labels, rows)

    def test_which_a_ttl_keeps_few(self, tmp_path):
        rows = [(f"entity {n}", 1, n, 0) for n in range(60)]
        labels = [(f"entity {n}", 1, n + 1) for n in range(60)]
        steps = self.steps(tmp_path, labels, rows, ttl=timedelta(seconds=3))
        assert "split labels" not in steps


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
