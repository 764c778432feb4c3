"""The point-in-time join in pieces: rows in chunks, entities in buckets, each step one small task.

    split_labels, split_source    a chunk of rows -> its keys and times (and features), by bucket
    join_bucket                   one bucket of one view -> its labels' features
    assemble                      a chunk of labels -> the same rows with every view's features

An entity is in one bucket, so a bucket is joined without any other. Every step reads files, leaves
one file whole (or none) and may be repeated: a worker that dies costs its own step. Memory is one
chunk, or one bucket's keys, times and answers; what it is gathered from are mapped files.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa

from penstock.features.join_columns import ticks_of
from penstock.features.point_in_time import (
    TIME,
    JoinPlan,
    label_keys,
    label_time,
    match_rows,
    source_rows,
)

_BUCKET, _PLACE = "__bucket", "__place"


@dataclass(frozen=True)
class Piece:
    """A run of rows in an Arrow file."""

    path: str
    start: int
    length: int


@dataclass(frozen=True)
class SplitChunk:
    """A chunk's rows of one view, lying bucket after bucket in one file."""

    path: str
    starts: tuple[int, ...]
    """Where each bucket begins, and where the last one ends."""

    def bucket(self, number: int) -> Piece:
        """The rows of one bucket."""
        start = self.starts[number]
        return Piece(self.path, start, self.starts[number + 1] - start)


def split_labels(
    plan: JoinPlan, chunk: pl.LazyFrame, *, num_buckets: int, out: Sequence[Path]
) -> list[SplitChunk]:
    """Cut a chunk of label rows into buckets, for each view by its own keys.

    Args:
        plan: the checked join.
        chunk: label rows.
        num_buckets: how many buckets there are.
        out: the file to leave for each view.
    """
    needed = dict.fromkeys([plan.event_time, *(k for v in plan.views for k in v.join_keys)])
    frame = chunk.select(list(needed)).collect()
    split = []
    for view, path in zip(plan.views, out, strict=True):
        keys = label_keys(view, plan.labels)
        rows = (
            frame.select(*keys, label_time(plan))
            .with_row_index(_PLACE)
            # A row with a null among them matches nothing.
            .drop_nulls([TIME, *_key_names(len(keys))])
        )
        split.append(split_by_keys(rows, _key_names(len(keys)), num_buckets, path))
    return split


def split_source(
    plan: JoinPlan, view: int, chunk: pl.LazyFrame, *, num_buckets: int, out: Path
) -> SplitChunk:
    """Cut a chunk of a view's rows into buckets."""
    side = plan.views[view]
    rows = source_rows(side, plan, chunk).collect()
    return split_by_keys(rows, _key_names(len(side.join_keys)), num_buckets, out)


def split_by_keys(
    rows: pl.DataFrame, keys: Sequence[str], num_buckets: int, out: Path
) -> SplitChunk:
    """Leave the rows in a file, bucket after bucket of their keys, each bucket in their order."""
    numbered = rows.with_columns(_bucket_of(rows.schema, keys, num_buckets).alias(_BUCKET))
    ordered = numbered.sort(_BUCKET, maintain_order=True)
    counts = np.bincount(ordered[_BUCKET].to_numpy(), minlength=num_buckets)
    write_arrow(ordered.drop(_BUCKET), out)
    return SplitChunk(str(out), (0, *np.cumsum(counts).tolist()))


def _key_names(num_keys: int) -> list[str]:
    return [f"__key{i}" for i in range(num_keys)]


def _bucket_of(schema: pl.Schema, keys: Sequence[str], num_buckets: int) -> pl.Expr:
    if not keys:
        return pl.lit(0, pl.UInt16)
    # Adding zero makes one of the two zeros that are equal and yet have different bits.
    equal = [pl.col(name) + 0.0 if schema[name].is_float() else pl.col(name) for name in keys]
    return (pl.struct(equal).hash(seed=0) % num_buckets).cast(pl.UInt16)


def join_bucket(
    plan: JoinPlan, view: int, labels: Sequence[Piece], source: Sequence[Piece], *, out: Path
) -> list[Piece]:
    """Join one bucket of a view: leaves the features of its label rows, in the labels' order.

    Args:
        plan: the checked join.
        view: the view's number in it.
        labels: the bucket's rows of each chunk of labels, in order.
        source: the bucket's rows of each chunk of the view, in order.
        out: the file to leave: `__place` in the chunk, and the view's features.

    Returns:
        For each chunk of labels where its rows lie in `out`.
    """
    side = plan.views[view]
    left, right = read_pieces(labels), read_pieces(source)
    times_and_keys = pl.col("^__(key.*|time|created)$")
    # Labels come in time order as a rule; then nothing has to be put in order, and back.
    order = None if left[TIME].is_sorted() else left[TIME].arg_sort()
    asked = left.drop(_PLACE)
    rows = match_rows(
        asked if order is None else asked[order],
        right.select(times_and_keys),
        ttl=ticks_of(side.ttl, plan.unit),
        known_at_label_time=plan.known_at_label_time,
    )
    if order is not None:
        back = np.empty(len(order), np.int64)
        back[order.to_numpy()] = np.arange(len(order))
        rows = rows.gather(back)
    found = {_PLACE: left[_PLACE]}
    for name in side.features:
        # One column after the other: gathering from many chunks is slow, and all at once is much.
        found[name] = right[name].rechunk().gather(rows)
    write_arrow(pl.DataFrame(found), out)
    starts = np.cumsum([0, *(piece.length for piece in labels)])
    return [
        Piece(str(out), int(start), piece.length)
        for start, piece in zip(starts[:-1], labels, strict=True)
    ]


def assemble(
    plan: JoinPlan, chunk: pl.LazyFrame, pieces: Sequence[Sequence[Piece]]
) -> pl.DataFrame:
    """Give a chunk's label rows with the features that the buckets found for them.

    Args:
        plan: the checked join.
        chunk: the label rows, as `split_labels` read them.
        pieces: for each view the chunk's rows of every bucket.
    """
    frame = chunk.collect()
    columns = frame.get_columns()
    for found in pieces:
        rows = read_pieces(found)
        where = np.full(frame.height, -1, np.int64)
        where[rows[_PLACE].to_numpy()] = np.arange(rows.height)
        order = pl.Series(where)
        if rows.height < frame.height:
            order = pl.select(pl.when(order >= 0).then(order)).to_series()
        columns += rows.drop(_PLACE).select(pl.all().gather(order)).get_columns()
    return pl.DataFrame(columns)


def read_pieces(pieces: Sequence[Piece]) -> pl.DataFrame:
    """The rows of the pieces, one after the other, mapped rather than read."""
    tables = [pa.ipc.open_file(pa.memory_map(p.path)).read_all() for p in pieces]
    parts = [table.slice(p.start, p.length) for table, p in zip(tables, pieces, strict=True)]
    return pl.DataFrame(pl.from_arrow(pa.concat_tables(parts), rechunk=False))


def write_arrow(frame: pl.DataFrame, out: Path) -> None:
    """Write a frame as an Arrow file that can be mapped; it is there whole, or not."""
    unfinished = out.with_suffix(".partial")
    frame.write_ipc(unfinished, compression="uncompressed")
    unfinished.replace(out)
