"""Looks at a Parquet file before any reader does, and refuses what must not be read.

Opening a file with pyarrow builds the extension types that its schema names, and a registered one
may run code that the file carries (Ray registers such a type). So the footer's bytes are searched
first, without building anything.
"""

import base64
import struct
from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.errors import DataError

_MAGIC = b"PAR1"
_MAGIC_ENCRYPTED = b"PARE"
_TAIL_BYTES = 8
_EXTENSION_KEY = b"ARROW:extension:name"


def _base64_forms(needle: bytes) -> list[bytes]:
    """What the needle looks like inside base64 text at each of the three alignments."""
    forms = []
    for shift in range(3):
        text = base64.b64encode(b"\0" * shift + needle)
        # The first and last characters also carry bits of the neighbours, which are unknown.
        start = (shift * 8 + 5) // 6
        end = (shift + len(needle)) * 8 // 6
        forms.append(text[start:end])
    return forms


# What the two readers raise on broken bytes; polars panics on a type it cannot make.
_FAILURES = (
    pa.ArrowException,
    OSError,
    ValueError,
    pl.exceptions.PolarsError,
    pl.exceptions.PanicException,
)
_HIDDEN_KEYS = _base64_forms(_EXTENSION_KEY)


def refuse_unsafe(path: Path) -> None:
    """Refuse a Parquet file that is broken at its end, encrypted, or has extension types.

    Raises:
        DataError: names the file and what is wrong with it.
    """
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        if size_bytes < len(_MAGIC) + _TAIL_BYTES:
            raise DataError(f"{path} is no whole Parquet file: it has {size_bytes} bytes")
        file.seek(-_TAIL_BYTES, 2)
        tail = file.read(_TAIL_BYTES)
        if tail[4:] == _MAGIC_ENCRYPTED:
            raise DataError(f"{path} is an encrypted Parquet file", next_step="decrypt it first")
        if tail[4:] != _MAGIC:
            raise DataError(
                f"{path} is no whole Parquet file: its last four bytes are {tail[4:]!r}",
                allowed="PAR1",
                next_step="it may be truncated: copy it again",
            )
        footer_bytes = struct.unpack("<I", tail[:4])[0]
        if footer_bytes > size_bytes - _TAIL_BYTES - len(_MAGIC):
            raise DataError(f"{path} is no whole Parquet file: its footer is longer than the file")
        file.seek(-_TAIL_BYTES - footer_bytes, 2)
        footer = file.read(footer_bytes)
    if _EXTENSION_KEY in footer or any(key in footer for key in _HIDDEN_KEYS):
        raise DataError(
            f"{path} has Arrow extension types, whose reading may run code from the file",
            next_step="write its columns as plain types",
        )


def open_file(path: Path) -> pq.ParquetFile:
    """Open a Parquet file that is safe to open, with the checksums of its pages verified.

    Raises:
        DataError: it cannot be opened.
    """
    refuse_unsafe(path)
    try:
        return pq.ParquetFile(path, page_checksum_verification=True)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: BaseException) -> DataError:
    """Say that a file broke while it was read."""
    if "ncrypt" in str(error):
        return DataError(f"{path} has encrypted columns", next_step="decrypt it first")
    return DataError(
        f"{path} is broken: {type(error).__name__}: {str(error).splitlines()[0][:200]}",
        next_step="copy it again, or write it again",
    )


def read_schema(path: Path, file: pq.ParquetFile) -> pl.Schema:
    """The columns as polars sees them.

    Raises:
        DataError: a type is broken.
    """
    try:
        return pl.DataFrame(pl.from_arrow(file.schema_arrow.empty_table())).schema
    except _FAILURES as error:
        raise unreadable(path, error) from error


def read_blocks(
    path: Path, columns: list[str], row_groups: list[int], block_rows: int
) -> Iterator[pl.DataFrame]:
    """Read some row groups in blocks, in order.

    Raises:
        DataError: a page is broken, fails its checksum, or cannot be decoded.
    """
    file = open_file(path)
    try:
        for batch in file.iter_batches(block_rows, row_groups=row_groups, columns=columns):
            # Arrow decodes texts without looking at them; broken ones would end polars.
            batch.validate(full=True)
            yield pl.DataFrame(pl.from_arrow(pa.Table.from_batches([batch]))).select(columns)
    except _FAILURES as error:
        raise unreadable(path, error) from error
    finally:
        file.close()
