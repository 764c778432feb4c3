"""Where tables come from: from a training set's tables back to the sources that were ingested."""

from collections.abc import Mapping
from typing import Any

import orjson

from penstock.data import tables
from penstock.data.tables import TableVersion
from penstock.features.build import SOURCE, SOURCE_VERSION
from penstock.records import Record
from penstock.settings import Settings

_MAX_SOURCES = 50
_INGEST = "ingest"


class TableOrigin(Record):
    """One version of a table, and what it was made from: its left neighbour."""

    table: str
    version: int
    num_rows: int
    made_from: str | None
    """`<table> version <n>`, for a table that was computed."""
    sources: tuple[str, ...]
    """The ingested sources by name, the newest first; at most 50."""
    num_sources: int


def trace(settings: Settings, table_versions: Mapping[str, int]) -> list[TableOrigin]:
    """Give the origin of each table, and of the tables that these were computed from."""
    found: dict[tuple[str, int], TableOrigin] = {}
    waiting = sorted(table_versions.items())
    while waiting:
        name, number = waiting.pop(0)
        if (name, number) in found:
            continue
        version = tables.latest(settings, name, number)
        source = version.metadata.get(SOURCE)
        made_from = None
        if source is not None:
            source_version = int(version.metadata[SOURCE_VERSION])
            made_from = f"{source} version {source_version}"
            waiting.append((source, source_version))
        sources = [] if made_from else _sources(settings, version)
        found[name, number] = TableOrigin(
            table=name,
            version=number,
            num_rows=version.num_rows,
            made_from=made_from,
            sources=tuple(sources[:_MAX_SOURCES]),
            num_sources=len(sources),
        )
    return list(found.values())


def _sources(settings: Settings, version: TableVersion) -> list[str]:
    names: list[str] = []
    for commit in tables.history(settings, version.table):
        if commit.version > version.version or _INGEST not in commit.metadata:
            continue
        report: dict[str, Any] = orjson.loads(commit.metadata[_INGEST])
        names += [each["source"] for each in report["sources"] if each["status"] == "ingested"]
    return names
