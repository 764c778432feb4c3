"""What a stream remembers of an entity: entries in the order of time, and their bytes.

An entry is one event, or all events of one cell of a grid: its time is that of its newest event,
its other fields are what the declared aggregations need of the column values (counts, sums,
extremes, squared deviations). Entries of many entities lie one after the other in flat arrays.
"""

import hashlib
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import polars as pl
from numpy.typing import NDArray

from penstock.errors import IntegrityError
from penstock.features.join_columns import MICROSECOND
from penstock.features.windows import Kind, Windows

Ints: TypeAlias = NDArray[np.int64]
Fields: TypeAlias = dict[str, NDArray[Any]]

POSITION = np.dtype([("partition", "<u8"), ("next", "<i8")])
"""Up to where events of a partition were applied to an entity."""
_HEAD = struct.Struct("<III")
_FORMAT = 1
# What each kind of aggregation needs of a column.
_NEEDS: dict[Kind, tuple[str, ...]] = {
    "count": (),
    "sum": ("sum",),
    "mean": ("sum",),
    "share": ("true",),
    "min": ("min",),
    "max": ("max",),
    "std": ("sum", "squares"),
    "last": ("last", "when"),
}


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The fields of one feature table's entries.

    Attributes:
        windows: what is computed from them.
        resolution: how wide a cell of the grid is.
        schema: the types of the source columns.
    """

    windows: Windows
    resolution: timedelta
    schema: Mapping[str, pl.DataType]

    @property
    def resolution_us(self) -> int:
        """The width of a cell."""
        return self.resolution // MICROSECOND

    @cached_property
    def delay_us(self) -> int:
        """How far every window is moved back."""
        return self.windows.delay // MICROSECOND

    @cached_property
    def widths_us(self) -> list[int]:
        """How wide each window is."""
        return [width // MICROSECOND for width in self.windows.widths.values()]

    @property
    def horizon_us(self) -> int:
        """An event that is older than an entity's newest by this much is in no window of it."""
        return self.delay_us + max(self.widths_us)

    @cached_property
    def needs(self) -> dict[str, tuple[str, ...]]:
        """What is kept of each column, beside the number of its values."""
        found: dict[str, dict[str, None]] = {}
        for aggregation in self.windows.aggregations:
            if aggregation.column is not None:
                needs = found.setdefault(aggregation.column, {})
                needs.update(dict.fromkeys(_NEEDS[aggregation.kind]))
        return {column: tuple(needs) for column, needs in found.items()}

    def is_whole(self, column: str) -> bool:
        """Whether the column's sums and extremes are whole numbers."""
        return not self.schema[column].is_float()

    @cached_property
    def dtype(self) -> np.dtype[Any]:
        """An entry in memory and in a blob."""
        fields: list[tuple[str, str]] = [("time", "<i8"), ("events", "<u4")]
        for column, needs in self.needs.items():
            fields.append((f"values:{column}", "<u4"))
            for need in needs:
                number = "<i8" if self.is_whole(column) else "<f8"
                kind = {"true": "<u4", "squares": "<f8", "when": "<i8"}.get(need, number)
                fields.append((f"{need}:{column}", kind))
        return np.dtype(fields)


def single_entries(layout: Layout, time_us: Ints, values: Mapping[str, pl.Series]) -> Fields:
    """One entry an event."""
    num_events = len(time_us)
    fields: Fields = {"time": time_us, "events": np.ones(num_events, np.uint32)}
    for column, needs in layout.needs.items():
        given = values[column]
        if given.dtype.is_float():
            # To every aggregation a NaN is no value.
            given = given.fill_nan(None)
        is_value = given.is_not_null().to_numpy()
        fields[f"values:{column}"] = is_value.astype(np.uint32)
        if not needs:
            continue
        dtype = pl.Int64() if layout.is_whole(column) else pl.Float64()
        numbers = given.cast(dtype).fill_null(0).to_numpy()
        for need in needs:
            given_us = time_us if need == "when" else numbers
            fields[f"{need}:{column}"] = _of_single_values(need, given_us, is_value)
    return fields


def _of_single_values(
    need: str, numbers: NDArray[Any], is_value: NDArray[np.bool_]
) -> NDArray[Any]:
    if need in ("sum", "last"):
        return numbers
    if need == "true":
        is_true: NDArray[Any] = numbers != 0
        return is_true.astype(np.uint32)
    if need == "squares":
        return np.zeros(len(numbers))
    smallest, largest = extremes_of(numbers.dtype)
    return np.where(is_value, numbers, largest if need == "min" else smallest)


def extremes_of(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The smallest and the largest number of the type."""
    if dtype.kind == "f":
        return -np.inf, np.inf
    limits = np.iinfo(dtype)
    return limits.min, limits.max


def merge_cells(
    layout: Layout, owner: Ints, fields: Fields, *, max_exact: int
) -> tuple[Ints, Fields]:
    """Merge entries of one cell, for entities that have more of them than may stay exact.

    An entity that has merged entries stays merged while it has any: a cell is either one entry or
    as many as it has events, so that an edge of a window takes it in, or leaves it out, as a whole.
    """
    num_owners = int(owner[-1]) + 1 if len(owner) else 0
    is_dense = np.bincount(owner, minlength=num_owners) > max_exact
    is_dense |= np.bincount(owner[fields["events"] > 1], minlength=num_owners) > 0
    if not is_dense.any():
        return owner, fields
    cell = fields["time"] // layout.resolution_us
    is_same = (owner[1:] == owner[:-1]) & (cell[1:] == cell[:-1]) & is_dense[owner[1:]]
    if not is_same.any():
        return owner, fields
    first = np.flatnonzero(np.concatenate([[True], ~is_same]))
    last = np.append(first[1:], len(owner)) - 1
    merged: Fields = {"time": fields["time"][last]}
    run = np.repeat(np.arange(len(first)), last - first + 1)
    for name, values in fields.items():
        need, _, column = name.partition(":")
        if need == "squares":
            merged[name] = squares_about_mean(fields, column, first, run)
        elif need == "last":
            merged[name] = values[_newest_values(fields[f"when:{column}"], first, run)]
        elif need in ("min", "max", "when"):
            merged[name] = (np.minimum if need == "min" else np.maximum).reduceat(values, first)
        elif need != "time":
            merged[name] = np.add.reduceat(values, first)
    return owner[first], merged


def squares_about_mean(fields: Fields, column: str, first: Ints, run: Ints) -> NDArray[Any]:
    """The sum of squared deviations of all values of each run of entries from the run's mean.

    Args:
        fields: the entries.
        column: whose values.
        first: where each run begins; runs lie one after the other, none is empty.
        run: the number of the run that each entry is in.
    """
    count = fields[f"values:{column}"].astype(np.longdouble)
    total = fields[f"sum:{column}"].astype(np.longdouble)
    of_run = np.add.reduceat(total, first) / np.maximum(np.add.reduceat(count, first), 1)
    deviation = total / np.maximum(count, 1) - of_run[run]
    squares = fields[f"squares:{column}"] + count * deviation**2
    of_runs: NDArray[Any] = np.add.reduceat(squares, first)
    return of_runs


def _newest_values(when: Ints, first: Ints, run: Ints) -> Ints:
    """The entry of each run whose value is the newest, which need not be the newest entry."""
    is_newest = when == np.maximum.reduceat(when, first)[run]
    places: Ints = np.maximum.reduceat(np.where(is_newest, np.arange(len(when)), 0), first)
    return places


def partition_id(name: str) -> int:
    """A partition's name in 64 bits, as states keep it."""
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")


@dataclass(frozen=True)
class Decoded:
    """States of many entities; entries of each by rising time, entities by rising rank."""

    owner: Ints
    fields: Fields
    position_owner: Ints
    positions: NDArray[Any]


def decode(layout: Layout, blobs: Sequence[bytes | None], generation: int) -> Decoded:
    """Read the states of entities; an absent one, or one of another generation, is empty.

    Raises:
        IntegrityError: a blob is no state.
    """
    size = layout.dtype.itemsize
    entries, positions = [], []
    num_entries, num_positions = np.zeros(len(blobs), np.int64), np.zeros(len(blobs), np.int64)
    for rank, blob in enumerate(blobs):
        if blob is None:
            continue
        is_long = len(blob) >= _HEAD.size
        form, number, of_generation = _HEAD.unpack_from(blob) if is_long else (0, 0, 0)
        start = _HEAD.size + number * POSITION.itemsize
        if form != _FORMAT or start > len(blob) or (len(blob) - start) % size:
            raise IntegrityError(
                f"the online store holds {len(blob)} bytes for an entity that are no state",
                next_step="run `penstock features stream` once with --rebuild",
            )
        if of_generation != generation:
            continue
        positions.append(blob[_HEAD.size : start])
        entries.append(blob[start:])
        num_positions[rank], num_entries[rank] = number, (len(blob) - start) // size
    flat = np.frombuffer(b"".join(entries), layout.dtype)
    ranks = np.arange(len(blobs))
    return Decoded(
        owner=np.repeat(ranks, num_entries),
        fields={name: np.ascontiguousarray(flat[name]) for name in layout.dtype.names or ()},
        position_owner=np.repeat(ranks, num_positions),
        positions=np.frombuffer(b"".join(positions), POSITION),
    )


def encode(layout: Layout, num_owners: int, states: Decoded, generation: int) -> list[bytes]:
    """Write the state of each entity as bytes."""
    flat = np.empty(len(states.owner), layout.dtype)
    for name, values in states.fields.items():
        flat[name] = values
    entries, positions = flat.tobytes(), states.positions.tobytes()
    ends = np.cumsum(np.bincount(states.owner, minlength=num_owners)) * layout.dtype.itemsize
    position_counts = np.bincount(states.position_owner, minlength=num_owners)
    position_ends = np.cumsum(position_counts) * POSITION.itemsize
    out, start, position_start = [], 0, 0
    for end, position_end, number in zip(
        ends.tolist(), position_ends.tolist(), position_counts.tolist(), strict=True
    ):
        head = _HEAD.pack(_FORMAT, number, generation)
        out.append(head + positions[position_start:position_end] + entries[start:end])
        start, position_start = end, position_end
    return out
