"""The kernel of every point-in-time join: for each label the last row of its entity until then.

Both sides come in time order. How many rows lie at or before a label's time is one search for all
labels; which of these rows is its entity's last one is a second search, over row numbers sorted by
entity. Both searches run with rising needles, which keeps them in the cache, and the entities are
sorted by radix: half of the processor time of polars' own as-of join.
"""

from typing import TypeAlias, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

_Codes: TypeAlias = NDArray[np.int64]
# A range of whole-number keys up to so many times the rows is used as it is.
_MAX_SPARSITY = 8
_DIGIT_BITS = 16
_UNKNOWN = -1


def last_rows(
    label_times: pl.Series, label_keys: pl.DataFrame, row_times: pl.Series, row_keys: pl.DataFrame
) -> NDArray[np.int64]:
    """Find for each label the last row with its keys whose time is <= the label's; -1: none.

    Args:
        label_times: whole ticks [n], rising, no nulls.
        label_keys: the key columns [n]; none: every row is everybody's.
        row_times: whole ticks [m], rising, no nulls; among equal times the last row wins.
        row_keys: the key columns [m], of the same types, no nulls.

    Returns:
        Row numbers [n].
    """
    seen = np.searchsorted(row_times.to_numpy(), label_times.to_numpy(), side="right")
    if not label_keys.width or not len(row_times):
        return seen.astype(np.int64) - 1
    label_codes, row_codes = _codes(label_keys, row_keys)
    # Rows by entity, each entity's in time order: their numbers rise within it.
    by_entity = _stable_order(row_codes)
    height = len(row_codes) + 1
    places = row_codes[by_entity] * height + by_entity
    labels_by_entity = _stable_order(label_codes)
    codes = label_codes[labels_by_entity]
    found = np.searchsorted(places, codes * height + seen[labels_by_entity], side="left") - 1
    rows = by_entity[found]
    rows[(found < 0) | (row_codes[rows] != codes)] = -1
    out = np.empty(len(rows), np.int64)
    out[labels_by_entity] = rows
    return out


def last_of_each(keys: pl.DataFrame) -> NDArray[np.int64]:
    """Find the last row of every entity.

    Args:
        keys: one or more key columns [m], no nulls.

    Returns:
        Row numbers, rising.
    """
    if not keys.height:
        return np.empty(0, np.int64)
    ends = _narrow_range(keys, keys.height)
    if ends is None:
        entity = pl.col(keys.columns[0]) if keys.width == 1 else pl.struct(pl.all())
        return (
            keys.select(entity.is_last_distinct().arg_true()).to_series().cast(pl.Int64).to_numpy()
        )
    low, high = ends
    last = np.full(high - low + 1, _UNKNOWN)
    # Of several rows with one code numpy keeps the last.
    last[keys.to_series().cast(pl.Int64).to_numpy() - low] = np.arange(keys.height)
    return np.sort(last[last != _UNKNOWN])


def _narrow_range(keys: pl.DataFrame, num_rows: int) -> tuple[int, int] | None:
    """The least and the greatest key, where they are whole numbers close enough to count by."""
    dtype = keys.dtypes[0]
    if keys.width > 1 or not dtype.is_integer() or dtype == pl.UInt64:
        return None
    rows = keys.to_series().cast(pl.Int64)
    low, high = cast(int, rows.min()), cast(int, rows.max())
    return (low, high) if high - low <= max(_MAX_SPARSITY * num_rows, 1 << _DIGIT_BITS) else None


def _codes(label_keys: pl.DataFrame, row_keys: pl.DataFrame) -> tuple[_Codes, _Codes]:
    """Number the entities: equal keys, equal numbers; a label whose keys no row has gets -1."""
    ends = _narrow_range(row_keys, len(row_keys) + len(label_keys))
    if ends is not None:
        low, high = ends
        labels, rows = (keys.to_series().cast(pl.Int64) for keys in (label_keys, row_keys))
        known = labels.is_between(low, high)
        code = pl.select(pl.when(known).then(labels - low).otherwise(_UNKNOWN)).to_series()
        return code.to_numpy(), (rows - low).to_numpy()
    numbers = row_keys.unique().with_row_index("code")
    on = row_keys.columns
    coded = [
        keys.join(numbers, on=on, how="left", maintain_order="left")["code"]
        .cast(pl.Int64)
        .fill_null(_UNKNOWN)
        .to_numpy()
        for keys in (label_keys, row_keys)
    ]
    return coded[0], coded[1]


def _stable_order(codes: _Codes) -> NDArray[np.int64]:
    """Sort by code, keeping the order of equals: numpy sorts 16 bits by radix, all else slowly."""
    rest = codes - _UNKNOWN
    order = np.argsort(rest.astype(np.uint16), kind="stable")
    while (rest >> _DIGIT_BITS).any():
        rest = rest >> _DIGIT_BITS
        order = order[np.argsort(rest[order].astype(np.uint16), kind="stable")]
    return order
