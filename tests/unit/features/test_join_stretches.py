"""Joins by stretches of time: which are taken, and what a stretch sees. That the values are right
is the law of test_distributed_join.py."""

from datetime import date, time, timedelta
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest

from penstock.cluster.tasks import run_here
from penstock.features import point_in_time
from penstock.features.distributed_join import execute
from penstock.features.join_stretches import Span, stretches_of
from worlds import labels_of, side, source_of

LABELS = labels_of([("a", 1, n) for n in range(8)])
VIEW = side(source_of([("a", 1, 0, 0)]), "who", created_time="made")


def plan(**more):
    return point_in_time.plan(LABELS.schema, [VIEW], event_time="at", **more)


def decide(labels, runs, **more):
    return stretches_of(plan(**more), labels, [runs], rows_per_chunk=10, num_buckets=4)


class TestDecision:
    def test_chunks_are_put_in_order_of_their_first_moments(self):
        labels = [Span(20, 29, 10), Span(None, None, 3), Span(0, 12, 10)]
        found, reason = decide(labels, [Span(0, 30, 20)])
        assert (found.order, found.firsts, found.lasts) == ((2, 0), (0, 20), (12, 29))
        assert "in order of time" in reason

    def test_a_chunk_may_meet_as_many_rows_as_would_fit(self):
        labels, runs = [Span(0, 9, 10)], [Span(n, n + 1, 10) for n in range(5)]
        assert decide(labels, runs[:4])[0] is not None
        refused, reason = decide(labels, runs)
        assert refused is None
        assert "label chunk 0 meet 50 rows of view_v, more than 40" in reason

    def test_or_as_many_as_a_bucket_would_have(self):
        runs = [Span(0, 9, 100), *(Span(20, 29, 100) for _ in range(3))]
        assert decide([Span(0, 9, 10)], runs)[0] is not None

    def test_rows_that_are_known_late_have_no_newest_one(self):
        assert decide([Span(0, 9, 10)], [Span(0, 9, 10)])[0] is not None
        refused, reason = decide([Span(0, 9, 10)], [Span(0, 9, 10)], known_at_label_time=True)
        assert refused is None
        assert "known long after" in reason

    def test_labels_without_times_make_no_stretch(self):
        assert decide([Span(None, None, 3)], [Span(0, 9, 10)])[0] is None


@pytest.mark.parametrize(
    "values",
    [
        pl.Series(["x", "y", None] * 20, dtype=pl.Categorical),
        pl.Series(["x", "y", None] * 20, dtype=pl.Enum(["y", "x"])),
        pl.Series([Decimal("1.50"), None] * 30, dtype=pl.Decimal(12, 2)),
        pl.Series([[1, None], [], None] * 20, dtype=pl.List(pl.Int16)),
        pl.Series([{"p": 1, "q": "x"}, None] * 30),
        pl.Series([b"\x00\xff", None] * 30),
        pl.Series([date(2024, 1, 1), None] * 30),
        pl.Series([time(1, 2), None] * 30),
        pl.Series([timedelta(seconds=1), None] * 30),
        pl.Series([True, None] * 30),
        pl.Series([None] * 60),
    ],
    ids=lambda values: str(values.dtype.base_type()),
)
def test_features_of_every_type_come_through(tmp_path: Path, values: pl.Series):
    rows = source_of([("ab"[n % 2], 1, n, 0) for n in range(60)]).with_columns(values.alias("v"))
    labels = labels_of([("ab"[n // 2 % 2], 1, n + 1) for n in range(60)])
    checked = point_in_time.plan(labels.schema, [side(rows, "who")], event_time="at")
    steps = set()
    chunks = execute(
        checked,
        [labels.lazy().slice(start, 10) for start in range(0, 60, 10)],
        lambda _, frame: frame,
        num_buckets=3,
        scratch=tmp_path,
        run=run_here,
        rows_per_chunk=10,
        progress=lambda step, *_, **__: steps.add(step),
    )
    assert pl.concat(chunks).equals(point_in_time.execute_in_one_task(checked, labels))
    assert "carry" in steps
    assert "split labels" not in steps
