"""Computes feature tables from their source tables, one atomic commit each."""

import polars as pl

from penstock.data import tables
from penstock.data.tables import TableVersion
from penstock.features import windows
from penstock.features.declarations import FeatureTable, load_feature_tables
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

# The names under which a feature table's commit tells what it was made from.
SOURCE = "source"
SOURCE_VERSION = "source_version"
DECLARATION = "declaration"


class BuiltTable(Record):
    """A feature table that is up to date with its source."""

    table: TableVersion
    source: str
    source_version: int
    is_new: bool
    """False: nothing had changed since that version was built."""


def build(settings: Settings, use_case: str, progress: Progress = silent) -> list[BuiltTable]:
    """Bring every feature table of the use case up to date with its source.

    A table whose source version and declaration are those of its newest version stays as it is. A
    kill leaves each table as it was or complete, and the next run does what is left.

    Raises:
        NotFoundError: no such use case, or a source table does not exist yet.
        BusyError: the same table is being built by another process.
    """
    return [
        _build_one(settings, table, progress)
        for table in load_feature_tables(settings, use_case).values()
    ]


def _build_one(settings: Settings, table: FeatureTable, progress: Progress) -> BuiltTable:
    lock = settings.storage_path / "locks" / f"build-{table.name}"
    with exclusive(lock, what=f"the build of {table.name}"):
        source = tables.latest(settings, table.source)
        made_from = {
            SOURCE: table.source,
            SOURCE_VERSION: str(source.version),
            DECLARATION: table.digest,
        }
        if tables.exists(settings, table.name):
            newest = tables.latest(settings, table.name)
            if made_from.items() <= newest.metadata.items():
                progress(f"{table.name} is up to date", newest.num_rows, newest.num_rows)
                return _built(newest, source, is_new=False)
        step = f"build {table.name}"
        progress(step, 0, source.num_rows)
        features = _compute(settings, table, source.version)
        committed = tables.commit(
            settings,
            table.name,
            features,
            mode="overwrite",
            partition_by="month",
            event_time=table.windows.event_time,
            metadata=made_from,
        )
        progress(step, source.num_rows, source.num_rows)
        return _built(committed, source, is_new=True)


def _compute(settings: Settings, table: FeatureTable, source_version: int) -> pl.DataFrame:
    events = (
        tables.scan(settings, table.source, version=source_version)
        .select(table.windows.source_columns())
        .collect()
    )
    keys = [*table.windows.entity, table.windows.event_time]
    # Nobody can look up a row without an entity or a time.
    return (
        windows.compute(events, table.windows)
        .drop_nulls(keys)
        .sort(table.windows.event_time, *table.windows.entity)
    )


def _built(version: TableVersion, source: TableVersion, *, is_new: bool) -> BuiltTable:
    return BuiltTable(
        table=version, source=source.table, source_version=source.version, is_new=is_new
    )
