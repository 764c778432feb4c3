"""Makes states and online rows again from the raw table: what a stream starts from.

Done where the states cannot be trusted to be the table's: at the first start, after a change of
the declarations, after somebody else wrote to the table, and after the online store lost writes.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import polars as pl
from feast import FeatureStore
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

from penstock.cluster.tasks import runner
from penstock.data.tables import TableFolder
from penstock.features.newest_rows import bring_newest
from penstock.features.online_rows import EPOCH, RowStore
from penstock.features.store import note_materialized
from penstock.features.stream_online import OnlineSide
from penstock.features.stream_table import Landed
from penstock.features.stream_targets import Target, Targets
from penstock.progress import Progress
from penstock.settings import Settings

_ROWS_PER_PART = 5_000_000


def why_rebuild(
    marker: Mapping[str, Any], digest: str, landed: Landed, *, is_ours: bool
) -> str | None:
    """Say why states must be made again; None: they are those of the table.

    Args:
        marker: what the stream wrote down beside its states; empty where there is nothing.
        digest: of the declarations as they are now.
        landed: where the table stands.
        is_ours: whether nobody else wrote to the table since the marker's version.
    """
    if not marker:
        return "the online store has no states"
    if marker["version"] is None:
        return "making them was broken off"
    if marker["digest"] != digest:
        return "the declarations changed"
    if marker["flush"] < landed.flush:
        return "the online store has lost its last writes"
    return None if is_ours else "somebody else wrote to the table"


@dataclass(frozen=True, kw_only=True)
class Rebuild:
    """What it takes to make states again."""

    settings: Settings
    store: FeatureStore
    rows: RowStore
    side: OnlineSide
    targets: Targets
    folder: TableFolder
    max_ahead: timedelta
    """Events further ahead of the clock, which others put into the table, stay out."""

    def all_entities(self, version: int, *, generation: int, progress: Progress) -> None:
        """Make the states and rows of every entity of that version of the table."""
        if version >= 0:
            self._windowed(self.folder.scan(version), generation, progress)
        now = datetime.now(UTC)
        for view in self.targets.plain if version >= 0 else ():
            bring_newest(
                self.store.config,
                get_offline_store_from_config(self.store.config.offline_store),
                self.rows,
                view,
                (EPOCH, now),
                scratch=self.settings.storage_path / "scratch" / "stream",
                run=runner(),
                progress=progress,
            )
        for view in self.targets.views:
            self.rows.mark_filled(self.store.config, view)
            note_materialized(self.settings, self.store, view, now)

    def some_entities(self, version: int, of: pl.DataFrame, *, generation: int) -> None:
        """Make the states and rows of the entities of these events again."""
        scan = self.folder.scan(version)
        for target in self.targets.windowed:
            some = of.select(target.entity).unique().lazy()
            own = scan.join(some, on=target.entity, how="semi")
            events = _within_horizon(own, target, self.max_ahead)
            self.side.make_again(target, events, generation=generation)
        for view in self.targets.plain:
            self.side.replace_plain(view, scan, of)

    def _windowed(self, scan: pl.LazyFrame, generation: int, progress: Progress) -> None:
        num_rows = scan.select(pl.len()).collect().item()
        num_parts = -(-num_rows // _ROWS_PER_PART)
        for target in self.targets.windowed:
            step = f"states of {target.table.name}"
            progress(step, 0, num_rows)
            for part in range(num_parts):
                own = scan
                if num_parts > 1:
                    own = scan.filter(pl.struct(target.entity).hash() % num_parts == part)
                events = _within_horizon(own, target, self.max_ahead)
                self.side.make_again(target, events, generation=generation)
                progress(step, min((part + 1) * _ROWS_PER_PART, num_rows), num_rows)


def _within_horizon(scan: pl.LazyFrame, target: Target, max_ahead: timedelta) -> pl.DataFrame:
    """The events of each entity that a window as of its newest event, or later, can reach."""
    time = pl.col(target.event_time)
    latest = datetime.now(UTC) + max_ahead
    rows = scan.select(target.table.windows.source_columns()).drop_nulls(target.entity)
    reach = timedelta(microseconds=target.layout.horizon_us)
    newest = time.max().over(target.entity)
    return rows.filter(time <= latest).filter(time > newest - reach).collect()
