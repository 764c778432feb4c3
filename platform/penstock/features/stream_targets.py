"""What a stream brings online: the feature tables made from its raw table, and who reads them."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass

import polars as pl
from feast import FeatureStore, FeatureView

from penstock.data.contracts import Table
from penstock.features.declarations import (
    FeatureTable,
    load_feature_objects,
    load_feature_tables,
)
from penstock.features.delta_source import DeltaSource
from penstock.features.newest_rows import source_of
from penstock.features.store import registered_view
from penstock.features.stream_declarations import Stream
from penstock.features.stream_entries import Layout
from penstock.features.stream_state import EXACT_ENTRIES
from penstock.settings import Settings
from penstock.use_cases import split_name

# Part of every digest: states that an older version wrote are made again.
_FORMAT = 1


@dataclass(frozen=True, kw_only=True)
class Target:
    """One feature table whose newest rows are kept online, and the views that show them."""

    table: FeatureTable
    layout: Layout
    views: tuple[FeatureView, ...]

    @property
    def entity(self) -> list[str]:
        """The columns that name an entity."""
        return list(self.table.windows.entity)

    @property
    def event_time(self) -> str:
        """The column that says when an event happened."""
        return self.table.windows.event_time


@dataclass(frozen=True, kw_only=True)
class Targets:
    """All that a stream brings online.

    Attributes:
        windowed: feature tables.
        plain: views of the raw table as it is; the newest event of an entity is its row.
        digest: changes when anything changes that states or rows depend on.
    """

    windowed: tuple[Target, ...]
    plain: tuple[FeatureView, ...]
    digest: str

    @property
    def views(self) -> list[FeatureView]:
        """Every view that the stream writes."""
        return [*(view for target in self.windowed for view in target.views), *self.plain]


def load_targets(
    settings: Settings, store: FeatureStore, stream: Stream, contract: Table
) -> Targets:
    """Find what a stream's events change, in the declarations of its use case.

    Raises:
        UserError: a view was not applied as it is declared now.
    """
    use_case, _ = split_name(stream.table)
    declared = load_feature_objects(settings, use_case).views.values()
    by_table: dict[str, list[FeatureView]] = {}
    for view in declared:
        source = source_of(view) if view.online else None
        if isinstance(source, DeltaSource) and source.table is not None:
            by_table.setdefault(source.table, []).append(registered_view(store, view))
    windowed = tuple(
        Target(
            table=table,
            layout=Layout(
                windows=table.windows, resolution=stream.resolution, schema=contract.columns
            ),
            views=tuple(by_table[name]),
        )
        for name, table in load_feature_tables(settings, use_case).items()
        if table.source == stream.table and name in by_table
    )
    plain = tuple(by_table.get(stream.table, ()))
    return Targets(windowed=windowed, plain=plain, digest=_digest(stream, windowed, plain))


def _digest(stream: Stream, windowed: tuple[Target, ...], plain: tuple[FeatureView, ...]) -> str:
    content = {
        "format": _FORMAT,
        "exact_entries": EXACT_ENTRIES,
        "resolution_us": stream.resolution.total_seconds(),
        "windowed": {t.table.digest: [_shape(view) for view in t.views] for t in windowed},
        "schema": {
            column: str(dtype)
            for target in windowed
            for column, dtype in target.layout.schema.items()
        },
        "plain": [_shape(view) for view in plain],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _shape(view: FeatureView) -> list[object]:
    """What of a view its online rows depend on."""
    mapping: Mapping[str, str] = source_of(view).field_mapping
    fields = sorted((field.name, str(field.dtype)) for field in view.schema)
    return [view.name, fields, sorted(mapping.items())]


def check_columns(targets: Targets, contract: Table) -> None:
    """Refuse feature tables that ask for columns which the raw table's contract lacks.

    Raises:
        DataError: one does, or the type of a column does not fit.
    """
    from penstock.features import windows

    nothing = pl.DataFrame(schema=dict(contract.columns))
    for target in targets.windowed:
        windows.compute(nothing, target.table.windows)
