"""Brings the newest row of every entity into the online store.

Every run writes the whole newest state, not only what came since the last: a late event changes
rows that were materialized long ago. The store itself refuses older rows, so that a run that was
killed, or runs beside pushes of newer values, can simply run again.
"""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

import polars as pl
from feast import FeatureStore, FeatureView
from feast.data_source import DataSource
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config
from feast.infra.online_stores.helpers import get_online_store_from_config

from penstock.errors import DeclarationError, UserError
from penstock.features import entity_keys
from penstock.features.declarations import load_feature_objects
from penstock.features.online_rows import EPOCH, RowStore, WrittenRows
from penstock.features.store import note_materialized, open_store, registered_view
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

# Bounds what is held as Python objects at a time; the columns themselves stay in Arrow.
_ROWS_PER_BLOCK = 20_000


class MaterializedView(Record):
    """A feature view whose newest rows, up to `until`, are in the online store."""

    view: str
    num_entities: int
    newest_event: datetime | None
    until: datetime


def materialize(
    settings: Settings,
    use_case: str,
    *,
    until: datetime | None = None,
    progress: Progress = silent,
) -> list[MaterializedView]:
    """Write the newest row of each entity, by event time and then created time, up to `until`.

    The watermark in the registry moves after all rows of a view are written.

    Args:
        settings: where the tables, the registry and the online store are.
        use_case: whose views.
        until: rows after it stay out; a naive time is UTC; None: now.
        progress: hears of rows written.

    Raises:
        UserError: a view was not applied as it is declared now.
        NotFoundError: a view's table was not built yet.
        BusyError: another process is materializing the same use case.
    """
    end = until or datetime.now(UTC)
    end = end if end.tzinfo else end.replace(tzinfo=UTC)
    declared = load_feature_objects(settings, use_case)
    lock = settings.storage_path / "locks" / f"materialize-{use_case}"
    with exclusive(lock, what=f"the materialization of {use_case}"):
        store = open_store(settings)
        views = [registered_view(store, view) for view in declared.views.values() if view.online]
        if not views:
            raise UserError(
                f"{use_case} declares no feature view with online=True",
                next_step=f"declare one in {settings.feature_repo_path / use_case / 'views.py'}",
            )
        online = cast(RowStore, get_online_store_from_config(store.config.online_store))
        try:
            done = []
            for view in views:
                done.append(_materialize_view(store, online, view, end, progress))
                note_materialized(settings, store, view, end)
            return done
        finally:
            online.disconnect()


def _materialize_view(
    store: FeatureStore, online: RowStore, view: FeatureView, end: datetime, progress: Progress
) -> MaterializedView:
    rows = newest_rows(store, view, end)
    step = f"materialize {view.name}"
    done = 0
    progress(step, done, rows.height)
    for block in _blocks(view, rows):
        online.write_rows(store.config, view, block)
        done += len(block.keys)
        progress(step, done, rows.height)
    newest = rows[_source(view).timestamp_field].max()
    return MaterializedView(
        view=view.name,
        num_entities=rows.height,
        newest_event=cast(datetime | None, newest),
        until=end,
    )


def newest_rows(store: FeatureStore, view: FeatureView, end: datetime) -> pl.DataFrame:
    """Read the newest row of each entity up to `end`, in the view's own names."""
    source = _source(view)
    offline = get_offline_store_from_config(store.config.offline_store)
    to_source = {name: column for column, name in source.field_mapping.items()}
    job = offline.pull_latest_from_table_or_query(
        config=store.config,
        data_source=source,
        join_key_columns=[to_source.get(key, key) for key in view.join_keys],
        feature_name_columns=[to_source.get(f.name, f.name) for f in view.features],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=EPOCH,
        end_date=end,
    )
    frame = pl.DataFrame(pl.from_arrow(job.to_arrow())).rename(source.field_mapping, strict=False)
    return frame.drop_nulls(view.join_keys)


def _source(view: FeatureView) -> DataSource:
    if view.batch_source is None:
        raise DeclarationError(
            f"the feature view {view.name!r} has no batch source to materialize from",
            next_step="give it one, or online=False",
        )
    return view.batch_source


def _blocks(view: FeatureView, rows: pl.DataFrame) -> Iterator[WrittenRows]:
    source = _source(view)
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


def _values(column: pl.Series) -> list[object]:
    if column.dtype.is_float():
        # A NaN is "no value" to every reader, and must replace a former value as a null does.
        return column.fill_nan(None).to_list()
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us", "UTC")).dt.epoch("s").to_list()
    return column.to_list()
