"""The quarantine: a table of bad rows beside each raw table, with where they came from and why.

The rows of a source go in just before the source's good rows do. Should the ingest be killed in
between, they stay unseen: only rows of sources that the table has are shown, and the next ingest
of the source puts its rows in the place of those.
"""

from collections.abc import Iterator, Sequence

import polars as pl
import pyarrow as pa

from penstock.data import tables
from penstock.data.contracts import QUARANTINE_SUFFIX
from penstock.settings import Settings

QUARANTINED = pl.Schema(
    {
        "source": pl.String(),
        "digest": pl.String(),
        "row": pl.Int64(),
        "column": pl.String(),
        "rule": pl.String(),
        "value": pl.String(),
        "record": pl.String(),
        "ingested_at": pl.Datetime("us", "UTC"),
    }
)


def transaction(digest: str) -> str:
    """Name the app transaction that stands for a source in its table."""
    return f"ingest:{digest}"


def put(
    settings: Settings, table: str, frames: Iterator[pl.DataFrame], digests: Sequence[str]
) -> None:
    """Put the bad rows of these sources in, in the place of what a killed ingest left of them."""
    folder = tables.folder(settings, table + QUARANTINE_SUFFIX)
    if folder.exists():
        left = folder.scan().filter(pl.col("digest").is_in(list(digests)))
        if left.select(pl.len()).collect().item():
            folder.delete_rows("digest", digests)
    add(settings, table, frames)


def add(settings: Settings, table: str, frames: Iterator[pl.DataFrame]) -> None:
    """Put bad rows in; they are seen once the table has the transactions of their digests."""
    first = next(frames, None)
    if first is None:
        return
    schema = QUARANTINED.to_frame().to_arrow().schema

    def batches() -> Iterator[pa.RecordBatch]:
        for frame in (first, *frames):
            yield from frame.select(QUARANTINED.names()).to_arrow().cast(schema).to_batches()

    folder = tables.folder(settings, table + QUARANTINE_SUFFIX)
    folder.commit(pa.RecordBatchReader.from_batches(schema, batches()), mode="append")


def clear_unlanded(settings: Settings, table: str, prefix: str) -> None:
    """Remove the rows whose digests begin so and never landed: a killed writer left them."""
    folder = tables.folder(settings, table + QUARANTINE_SUFFIX)
    if not folder.exists():
        return
    ours = folder.scan().select("digest").filter(pl.col("digest").str.starts_with(prefix))
    digests = ours.unique().collect()["digest"].to_list()
    landed = tables.folder(settings, table).known_transactions(map(transaction, digests))
    if left := [digest for digest in digests if transaction(digest) not in landed]:
        folder.delete_rows("digest", left)


def read(settings: Settings, table: str) -> pl.LazyFrame:
    """Read the bad rows of the sources that the table has.

    Raises:
        NotFoundError: nothing was ever ingested into the table.
    """
    folder = tables.folder(settings, table + QUARANTINE_SUFFIX)
    if not folder.exists():
        tables.latest(settings, table)
        return QUARANTINED.to_frame().lazy()
    scan = folder.scan()
    digests = scan.select("digest").unique().collect()["digest"].to_list()
    owner = tables.folder(settings, table)
    landed = owner.known_transactions(transaction(digest) for digest in digests)
    return scan.filter(pl.col("digest").is_in([d for d in digests if transaction(d) in landed]))
