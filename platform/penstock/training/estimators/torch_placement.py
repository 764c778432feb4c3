"""Decides where the rows that a net trains on lie."""

from dataclasses import dataclass
from typing import Literal

Where = Literal["on the device", "in host memory", "in a file"]

ROW_SHARE = 0.5
"""Of the memory that is free, rows may take this much; the rest is for weights, the optimiser's
state, activations, and whatever else the machine does."""
_NUMBER_BYTES = 4


@dataclass(frozen=True, kw_only=True)
class Memory:
    """What one worker may count on."""

    device: str
    """`cpu`, or the GPU's name."""
    device_bytes: int
    """Free on the device; on a CPU the worker's part of what its node has free."""


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where rows lie, and why there."""

    where: Where
    reason: str


def matrix_bytes(num_rows: int, num_features: int) -> int:
    """How much float32 features and targets take."""
    return num_rows * (num_features + 1) * _NUMBER_BYTES


def place_rows(
    num_rows: int, num_features: int, memory: Memory, *, is_mapped: bool = False
) -> Placement:
    """Choose the nearest place to the device in which the rows have room.

    On the device a batch is picked with no copy from the host. In host memory, or in the file that
    they come in where they are mapped, it is picked ahead of time and copied beside the
    computation.
    """
    needed = matrix_bytes(num_rows, num_features)
    told = f"{num_rows:,} rows x {num_features} features take {_mb(needed)}"
    if needed <= memory.device_bytes * ROW_SHARE:
        return Placement(
            where="on the device",
            reason=f"{told}; of {_mb(memory.device_bytes)} free on {memory.device} rows may take "
            f"{ROW_SHARE:.0%}",
        )
    told += f", more than {ROW_SHARE:.0%} of {_mb(memory.device_bytes)} on {memory.device}"
    return Placement(where="in a file" if is_mapped else "in host memory", reason=told)


def _mb(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"
