"""Matrices in files that are mapped: memory that the system may take back, and workers share."""

import mmap
import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from penstock.errors import storage_full

Number = TypeVar("Number", np.float32, np.float64)


def make_mapped(
    file: Path, num_rows: int, num_columns: int, dtype: type[Number]
) -> "np.memmap[Any, np.dtype[Number]]":
    """Make a file of a matrix, mapped for writing; one of that name is replaced.

    Raises:
        StorageFullError: the disk has no room for it.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    # Whoever still maps the one before keeps it.
    file.unlink(missing_ok=True)
    made = np.lib.format.open_memmap(file, mode="w+", dtype=dtype, shape=(num_rows, num_columns))
    try:
        with file.open("r+b") as opened:
            # A page that finds no room when it is written to ends the process.
            os.posix_fallocate(opened.fileno(), 0, file.stat().st_size)
    except OSError as error:
        raise storage_full(error) or error from error
    return made


def mapped_file(rows: npt.NDArray[Any]) -> Path | None:
    """Find the file of a matrix that `make_mapped` gave; None: it is none, or a part of one."""
    if isinstance(rows, np.memmap) and isinstance(rows.base, mmap.mmap) and rows.filename:
        return Path(rows.filename)
    return None
