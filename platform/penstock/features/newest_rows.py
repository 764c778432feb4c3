"""The newest row of each entity, on its way from a view's source to the online store.

One task where the source's rows fit the memory budget. Else two steps of small tasks: each chunk of
rows is cut down to its entities' newest and laid out by bucket; then each bucket is cut down again
and written. Both ways write the same rows, whole blocks at a time, and may be repeated: the store
keeps what is newer.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import cast

import polars as pl
from feast import FeatureView
from feast.data_source import DataSource
from feast.feature_view import DUMMY_ENTITY_ID
from feast.infra.offline_stores.offline_store import OfflineStore
from feast.infra.online_stores.helpers import get_online_store_from_config
from feast.repo_config import RepoConfig

from penstock.cluster.tasks import RunTasks
from penstock.errors import DeclarationError
from penstock.features import entity_keys, source_files
from penstock.features.distributed_join import ROWS_PER_CHUNK
from penstock.features.join_pieces import Piece, SplitChunk, read_pieces, split_by_keys
from penstock.features.join_planner import SideSize, num_buckets_for, row_bytes
from penstock.features.online_rows import RowStore, WrittenRows
from penstock.locks import private_folder
from penstock.progress import Progress, silent

# Bounds what is held as Python objects at a time; the columns themselves stay in Arrow.
_ROWS_PER_BLOCK = 20_000


@dataclass(frozen=True, kw_only=True)
class Written:
    """What came into the online store."""

    num_entities: int
    newest_event: datetime | None


def newest_rows(
    config: RepoConfig, offline: OfflineStore, view: FeatureView, start: datetime, end: datetime
) -> pl.DataFrame:
    """Read the newest row of each entity with start <= event time <= end, in the view's own names.

    Raises:
        DeclarationError: the view has no source to read.
    """
    source = source_of(view)
    stored = _stored_names(source)
    job = offline.pull_latest_from_table_or_query(
        config=config,
        data_source=source,
        join_key_columns=[stored.get(key, key) for key in view.join_keys],
        feature_name_columns=[stored.get(f.name, f.name) for f in view.features],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=_aware(start),
        end_date=_aware(end),
    )
    frame = pl.DataFrame(pl.from_arrow(job.to_arrow())).rename(source.field_mapping, strict=False)
    return frame.drop_nulls(view.join_keys)


def bring_newest(
    config: RepoConfig,
    offline: OfflineStore,
    online: RowStore,
    view: FeatureView,
    period: tuple[datetime, datetime],
    *,
    scratch: Path,
    run: RunTasks,
    progress: Progress = silent,
) -> Written:
    """Write the newest row of each entity, in one task or in many, as its source's size asks.

    Args:
        config: the repo's configuration.
        offline: where one task reads.
        online: one of Penstock's online stores.
        view: the view.
        period: first and last event time, both included.
        scratch: a folder that every node shares, for what lies between the steps.
        run: where many tasks run.
        progress: hears of rows written.
    """
    num_buckets = _num_buckets(config, view)
    if num_buckets == 1:
        rows = newest_rows(config, offline, view, *period)
        return _write(config, online, view, rows, progress)
    return _write_in_buckets(
        config,
        online,
        view,
        period,
        num_buckets=num_buckets,
        scratch=scratch,
        run=run,
        progress=progress,
    )


def _write(
    config: RepoConfig,
    online: RowStore,
    view: FeatureView,
    rows: pl.DataFrame,
    progress: Progress,
) -> Written:
    step = f"materialize {view.name}"
    done = 0
    progress(step, done, rows.height)
    for block in blocks(view, rows):
        online.write_rows(config, view, block)
        done += len(block.keys)
        progress(step, done, rows.height)
    online.mark_filled(config, view)
    newest = cast(datetime | None, rows[source_of(view).timestamp_field].max())
    return Written(num_entities=rows.height, newest_event=newest)


def _write_in_buckets(
    config: RepoConfig,
    online: RowStore,
    view: FeatureView,
    period: tuple[datetime, datetime],
    *,
    num_buckets: int,
    scratch: Path,
    run: RunTasks,
    progress: Progress,
) -> Written:
    # No row passes through this process: each task opens its stores by the configuration.
    num_rows = _num_rows(config, view)
    starts = range(0, num_rows, ROWS_PER_CHUNK)
    with private_folder(scratch, what="the scratch of a materialization") as folder:
        step = f"newest rows of {view.name}"
        chunks: list[SplitChunk] = []
        progress(step, 0, num_rows)
        reading = run(
            partial(_split_chunk, config, view, period, num_buckets),
            [{"start": start, "out": folder / f"chunk-{start}.arrow"} for start in starts],
        )
        for start, chunk in zip(starts, reading, strict=True):
            chunks.append(chunk)
            progress(step, min(start + ROWS_PER_CHUNK, num_rows), num_rows)
        step = f"materialize {view.name}"
        # An entity stands in several chunks: how many there are is known at the end.
        total, done, newest = sum(chunk.starts[-1] for chunk in chunks), 0, None
        progress(step, done, total)
        writing = run(
            partial(_write_bucket, config, view),
            [{"pieces": [c.bucket(n) for c in chunks]} for n in range(num_buckets)],
        )
        for written in writing:
            done += written.num_entities
            times = [t for t in (newest, written.newest_event) if t is not None]
            newest = max(times, default=None)
            progress(step, done, total)
        progress(step, done, done)
    online.mark_filled(config, view)
    return Written(num_entities=done, newest_event=newest)


def _num_buckets(config: RepoConfig, view: FeatureView) -> int:
    """How many buckets keep each task within the offline store's memory budget; 1: one task."""
    budget_bytes = getattr(config.offline_store, "join_memory_bytes", None)
    # Another offline store has sources of its own; a view without entities has a single row.
    if budget_bytes is None or not view.entity_columns or DUMMY_ENTITY_ID in view.join_keys:
        return 1
    schema = source_files.scan(source_of(view), config).collect_schema()
    size = SideSize(
        name=view.name,
        num_rows=_num_rows(config, view),
        row_bytes=row_bytes(schema[name] for name in _columns(view)),
    )
    return num_buckets_for(size, budget_bytes=budget_bytes)


def source_of(view: FeatureView) -> DataSource:
    """The source that a view is materialized from.

    Raises:
        DeclarationError: it has none.
    """
    if view.batch_source is None:
        raise DeclarationError(
            f"the feature view {view.name!r} has no batch source to materialize from",
            next_step="give it one, or online=False",
        )
    return view.batch_source


def _num_rows(config: RepoConfig, view: FeatureView) -> int:
    rows: int = source_files.scan(source_of(view), config).select(pl.len()).collect().item()
    return rows


def _split_chunk(
    config: RepoConfig,
    view: FeatureView,
    period: tuple[datetime, datetime],
    num_buckets: int,
    *,
    start: int,
    out: Path,
) -> SplitChunk:
    source = source_of(view)
    chunk = source_files.scan(source, config).slice(start, ROWS_PER_CHUNK)
    within = source_files.between(chunk, source.timestamp_field, *map(_aware, period))
    rows = within.select(_columns(view)).drop_nulls([*_keys(view), source.timestamp_field])
    return split_by_keys(_newest(view, rows.collect()), _keys(view), num_buckets, out)


def _write_bucket(config: RepoConfig, view: FeatureView, *, pieces: Sequence[Piece]) -> Written:
    rows = _newest(view, read_pieces(pieces)).rename(source_of(view).field_mapping, strict=False)
    online = cast(RowStore, get_online_store_from_config(config.online_store))
    try:
        for block in blocks(view, rows):
            online.write_rows(config, view, block)
    finally:
        online.disconnect()
    newest = cast(datetime | None, rows[source_of(view).timestamp_field].max())
    return Written(num_entities=rows.height, newest_event=newest)


def _newest(view: FeatureView, rows: pl.DataFrame) -> pl.DataFrame:
    """Each entity's newest row: by event time, then created time, then place."""
    source = source_of(view)
    times = [source.timestamp_field]
    if source.created_timestamp_column:
        times.append(source.created_timestamp_column)
    ordered = rows.sort(times, nulls_last=False, maintain_order=True)
    return ordered.unique(_keys(view), keep="last", maintain_order=True)


def _keys(view: FeatureView) -> list[str]:
    stored = _stored_names(source_of(view))
    return [stored.get(key, key) for key in view.join_keys]


def _columns(view: FeatureView) -> list[str]:
    source = source_of(view)
    stored = _stored_names(source)
    features = [stored.get(f.name, f.name) for f in view.features]
    created = [source.created_timestamp_column] if source.created_timestamp_column else []
    return list(dict.fromkeys([*_keys(view), *features, source.timestamp_field, *created]))


def _stored_names(source: DataSource) -> dict[str, str]:
    """What Feast calls a column -> what the table calls it."""
    return {name: column for column, name in source.field_mapping.items()}


def _aware(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def blocks(view: FeatureView, rows: pl.DataFrame) -> Iterator[WrittenRows]:
    """Give rows, in the view's own names, as the online store takes them."""
    source = source_of(view)
    for block in rows.iter_slices(_ROWS_PER_BLOCK):
        created = source.created_timestamp_column
        yield WrittenRows(
            keys=entity_keys.encode({key: block[key].to_list() for key in view.join_keys}),
            event_us=_micros(block[source.timestamp_field]),
            created_us=_micros(block[created]) if created else None,
            features={f.name: _values(block[f.name]) for f in view.features},
        )


def _micros(times: pl.Series) -> list[int]:
    return times.cast(pl.Datetime("us", "UTC")).to_physical().to_list()


def _values(column: pl.Series) -> Sequence[object]:
    if column.dtype.is_float():
        # A NaN is "no value" to every reader, and must replace a former value as a null does.
        return column.fill_nan(None).to_list()
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us", "UTC")).dt.epoch("s").to_list()
    return column.to_list()
