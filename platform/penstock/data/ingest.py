"""Brings raw sources into a table: checked, counted, each source once, all of a call or nothing.

Every source is checked first, into a staging folder. A source that is refused leaves nothing; the
others land in one commit that carries a transaction a source, so that the same bytes never land
twice, whenever an ingest was killed.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from typing import Literal

import polars as pl
import pyarrow as pa

from penstock.data import quarantine, tables
from penstock.data.checks import ROW, RawBlock
from penstock.data.contracts import Table
from penstock.data.source_kinds import Inspected, Source
from penstock.data.sources import for_each, inspect
from penstock.data.staging import (
    StagedUnit,
    kept_rows,
    read_frames,
    repeated_keys,
    stage,
    staging_folder,
)
from penstock.errors import DataError
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

_WAIT_S = 3600.0
UNIQUE_RULE = "unique"


class SourceReport(Record):
    """What became of one source; read = kept + quarantined, all zero unless it was ingested."""

    source: str
    digest: str | None
    status: Literal["ingested", "already", "refused"]
    num_read: int = 0
    num_kept: int = 0
    num_quarantined: int = 0
    broken_rules: dict[str, int]
    """Bad rows by `column: rule`."""
    ignored_columns: tuple[str, ...] = ()
    reason: str | None = None
    """Why the source was refused."""


class IngestReport(Record):
    """What an ingest did; `version` is the table's newest after it, None if there is no table."""

    table: str
    version: int | None
    num_read: int
    num_kept: int
    num_quarantined: int
    sources: tuple[SourceReport, ...]

    @property
    def refused(self) -> tuple[SourceReport, ...]:
        """The sources of which nothing was taken."""
        return tuple(s for s in self.sources if s.status == "refused")


class _Ingest:
    """The state of one call: what is known of each source, by its place in the call."""

    def __init__(self, table: Table, sources: Sequence[Source]) -> None:
        self.table = table
        self.sources = sources
        self.inspected: dict[int, Inspected] = {}
        self.digests: dict[int, str | None] = {}
        self.refused: dict[int, str] = {}
        self.already: set[int] = set()
        self.copies: dict[int, int] = {}
        """A source -> the one before it in this call that has the same bytes."""
        self.staged: dict[int, list[StagedUnit]] = {}

    def look(self, progress: Progress) -> None:
        for index, source in enumerate(self.sources):
            try:
                self.inspected[index] = inspect(source, index, self.table)
                self.digests[index] = self.inspected[index].digest
            except DataError as error:
                self.refused[index] = str(error)
            progress("look at the sources", index + 1, len(self.sources), unit="sources")

    def leave_out_known(self, folder: tables.TableFolder) -> None:
        """Leave out what the table has, and what stands twice in this call."""
        names = [quarantine.transaction(d) for d in self.digests.values() if d]
        known = folder.known_transactions(names)
        first: dict[str, int] = {}
        for index, digest in self.digests.items():
            if digest is None or index in self.refused:
                continue
            if first.setdefault(digest, index) != index:
                self.copies[index] = first[digest]
            if index in self.copies or quarantine.transaction(digest) in known:
                self.already.add(index)

    def check(self, folder: str, progress: Progress) -> None:
        units = [
            unit
            for index, inspected in self.inspected.items()
            if index not in self.already
            for unit in inspected.units
        ]
        for index in self.inspected.keys() - self.already:
            self.staged[index] = []
        num_read = 0
        for result in for_each(units, partial(stage, table=self.table, folder=folder)):
            unit = StagedUnit.model_validate(result)
            self.staged[unit.source_index].append(unit)
            num_read += unit.num_read
            progress("check the rows", num_read)
        for index, staged in self.staged.items():
            staged.sort(key=lambda unit: unit.first_row)
            reason = refusal(staged, self.table)
            if reason is not None:
                self.refused[index] = reason
            for unit in staged:
                self.digests[index] = unit.digest or self.digests[index]
        for index, original in self.copies.items():
            if original in self.refused:
                name, reason = self.sources[original].name, self.refused[original]
                self.refused[index] = f"it has the same bytes as {name}: {reason}"

    def landing(self) -> list[StagedUnit]:
        """The staged units that are to land, in the order of the call."""
        return [unit for index in self.landing_sources() for unit in self.staged[index]]

    def landing_sources(self) -> list[int]:
        return sorted(self.staged.keys() - self.already - self.refused.keys())


def refusal(staged: Sequence[StagedUnit], table: Table) -> str | None:
    """Say why a source is refused after its rows were read, if it is."""
    for unit in staged:
        if unit.refused is not None:
            return unit.refused
    for column, dtype in table.columns.items():
        num_values = sum(unit.num_values.get(column, 0) for unit in staged)
        num_failed = sum(unit.num_failed.get(column, 0) for unit in staged)
        if num_failed and num_failed == num_values:
            error = DataError(
                f"none of the {num_values} values in column {column} is of its type",
                allowed=str(dtype),
                next_step=f"is {column} really that column?",
            )
            return str(error)
    return None


def ingest(
    settings: Settings, table: Table, sources: Sequence[Source], progress: Progress = silent
) -> IngestReport:
    """Check the sources and land the good ones in one commit; bad rows go to quarantine.

    Another ingest of the same table is waited for while rows are compared with it and written.

    Raises:
        BusyError: another ingest held the table for an hour.
    """
    call = _Ingest(table, sources)
    folder = tables.folder(settings, table.name)
    call.look(progress)
    call.leave_out_known(folder)
    with staging_folder(settings, table) as staging:
        call.check(str(staging), progress)
        with landing(settings, table):
            # Another ingest may have landed the same bytes while these were checked.
            call.leave_out_known(folder)
            return _land(settings, call, folder, progress)


def landing(settings: Settings, table: Table) -> AbstractContextManager[None]:
    """Wait for whoever compares rows with the table's and writes them, then hold all others off.

    Raises:
        BusyError: the other one held the table for an hour.
    """
    lock = settings.storage_path / "locks" / f"ingest.{table.name}.lock"
    return exclusive(lock, what=f"the ingest into {table.name}", wait_s=_WAIT_S)


def _land(
    settings: Settings, call: _Ingest, folder: tables.TableFolder, progress: Progress
) -> IngestReport:
    table = call.table
    landing = call.landing()
    sources = call.landing_sources()
    digests = {index: call.digests[index] or "" for index in sources}
    stored = folder.scan() if folder.exists() and table.key else None
    progress("compare keys", 0, 1, unit="steps")
    repeated = repeated_keys(landing, table, stored)
    bad_counts = {index: Counter[str]() for index in sources}

    def bad_frames() -> Iterator[pl.DataFrame]:
        now = datetime.now(UTC)
        for index, frame in _bad_rows(landing, repeated, table):
            counts = frame.group_by("column", "rule").len().sort("column", "rule")
            for column, rule, number in counts.iter_rows():
                bad_counts[index][f"{column}: {rule}"] += number
            yield frame.with_columns(
                pl.lit(call.sources[index].name).alias("source"),
                pl.lit(digests[index]).alias("digest"),
                pl.lit(now, dtype=pl.Datetime("us", "UTC")).alias("ingested_at"),
            )

    progress("quarantine", 0, 1, unit="steps")
    if sources:
        quarantine.put(settings, table.name, bad_frames(), list(digests.values()))
    report = _report(call, bad_counts, folder.latest().version if folder.exists() else None)
    if not sources:
        return report
    schema = pl.DataFrame(schema=pl.Schema(table.columns)).to_arrow().schema

    def batches() -> Iterator[pa.RecordBatch]:
        num_written = 0
        progress("write", 0, report.num_kept)
        for _, new, _ in kept_rows(landing, repeated):
            yield from new.to_arrow().to_batches()
            num_written += new.height
            progress("write", num_written, report.num_kept)

    version = folder.commit(
        pa.RecordBatchReader.from_batches(schema, batches()),
        mode="append",
        partition_by=table.partition_by,
        event_time=table.event_time,
        transactions={quarantine.transaction(digest): 1 for digest in digests.values()},
        metadata={"ingest": report.model_dump_json(exclude={"version"})},
    )
    progress("committed", 1, 1, unit="steps")
    return report.model_copy(update={"version": version.version})


def _bad_rows(
    landing: list[StagedUnit], repeated: pl.Series, table: Table
) -> Iterator[tuple[int, pl.DataFrame]]:
    for unit in landing:
        for frame in read_frames(unit.bad_path):
            yield unit.source_index, frame
    if not repeated.any():
        return
    for unit, _, again in kept_rows(landing, repeated):
        if again.is_empty():
            continue
        block = RawBlock(0, {s.name: s for s in again.drop(ROW)}, again.height)
        rows = range(again.height)
        keys = zip(*(block.texts(column, rows) for column in table.key), strict=True)
        yield (
            unit.source_index,
            again.select(
                pl.col(ROW).alias("row"),
                pl.lit(", ".join(table.key)).alias("column"),
                pl.lit(UNIQUE_RULE).alias("rule"),
                pl.Series("value", [", ".join(map(str, key)) for key in keys], dtype=pl.String),
                pl.Series("record", block.records(rows), dtype=pl.String),
            ),
        )


def _report(
    call: _Ingest, bad_counts: dict[int, Counter[str]], version: int | None
) -> IngestReport:
    reports = []
    for index, source in enumerate(call.sources):
        inspected = call.inspected.get(index)
        about = {
            "source": source.name,
            "digest": call.digests.get(index),
            "ignored_columns": inspected.ignored_columns if inspected else (),
        }
        if index in call.refused:
            reports.append(
                SourceReport(**about, status="refused", broken_rules={}, reason=call.refused[index])
            )
        elif index in call.already:
            reports.append(SourceReport(**about, status="already", broken_rules={}))
        else:
            num_read = sum(unit.num_read for unit in call.staged[index])
            num_bad = bad_counts[index].total()
            reports.append(
                SourceReport(
                    **about,
                    status="ingested",
                    num_read=num_read,
                    num_kept=num_read - num_bad,
                    num_quarantined=num_bad,
                    broken_rules=dict(bad_counts[index]),
                )
            )
    return IngestReport(
        table=call.table.name,
        version=version,
        num_read=sum(r.num_read for r in reports),
        num_kept=sum(r.num_kept for r in reports),
        num_quarantined=sum(r.num_quarantined for r in reports),
        sources=tuple(reports),
    )
