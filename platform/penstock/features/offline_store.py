"""Feast's offline store on Penstock's point-in-time engine.

In feature_store.yaml, with or without a Penstock project around it:

    offline_store:
        type: penstock.features.offline_store.PenstockOfflineStore

It reads DeltaSource and FileSource (Parquet, Delta); docs/point_in_time.md states what it returns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeAlias

import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
from feast.data_source import DataSource
from feast.feature_logging import LoggingConfig, LoggingSource
from feast.feature_view import DUMMY_ENTITY_ID, DUMMY_ENTITY_VAL, FeatureView
from feast.infra.offline_stores.file_source import FileLoggingDestination, FileSource
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalMetadata
from feast.infra.registry.base_registry import BaseRegistry
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _get_requested_feature_views_to_features_dict

from penstock.cluster.tasks import runner
from penstock.errors import DataError, DeclarationError
from penstock.features import point_in_time, source_files
from penstock.features.distributed_join import ROWS_PER_CHUNK, execute
from penstock.features.join_pieces import write_arrow
from penstock.features.join_planner import SideSize, choose_path, row_bytes, side_size
from penstock.features.point_in_time import JoinPlan, ViewSide
from penstock.features.retrieval_job import PenstockRetrievalJob, to_plain_arrow
from penstock.locks import private_folder

EntityRows: TypeAlias = pd.DataFrame | pl.DataFrame | pa.Table
_EVENT_TIMESTAMP = "event_timestamp"


class PenstockOfflineStoreConfig(FeastConfigBaseModel):
    """The `offline_store` section of feature_store.yaml."""

    type: str = "penstock.features.offline_store.PenstockOfflineStore"
    tables_root: str | None = None
    """The folder in which `DeltaSource(table="use_case.name")` finds its table; None: the
    project's settings say."""
    join_memory_bytes: int = 4 << 30
    """What a join may take in this process; a larger one is cut into pieces, on disk beside the
    repo, which run on Ray where this process is connected to one."""


class PenstockOfflineStore(OfflineStore):
    """Point-in-time features that lose no row, read by polars in one task."""

    supports_filter_by_created_timestamp = True

    @staticmethod
    def get_historical_features(
        config: RepoConfig,
        feature_views: list[FeatureView],
        feature_refs: list[str],
        entity_df: EntityRows | str | None,
        registry: BaseRegistry,
        project: str,
        full_feature_names: bool = False,
        filter_by_created_timestamp: bool = False,
        **_dates: datetime,
    ) -> PenstockRetrievalJob:
        """Join the features to the entity rows; see `penstock.features.point_in_time`.

        Args:
            config: the repo's configuration.
            feature_views: the views that hold the features.
            feature_refs: `view:feature`, those that on-demand views read included.
            entity_df: pandas, polars or Arrow, with the views' join keys and one event time:
                `event_timestamp`, or the only timestamp column.
            registry: where the on-demand views are found.
            project: the Feast project.
            full_feature_names: name the features `view__feature`.
            filter_by_created_timestamp: only values that were created by the row's event time.

        Raises:
            DataError: the entity rows are a query or absent, or lack a column that is needed.
        """
        on_demand = OnDemandFeatureView.get_requested_odfvs(feature_refs, project, registry)
        wanted, _ = _get_requested_feature_views_to_features_dict(
            feature_refs, feature_views, on_demand
        )
        labels, event_time = _labels(entity_df)
        views = [
            view_side(view, features, config, full_feature_names=full_feature_names)
            for view, features in wanted.items()
        ]
        needed = dict.fromkeys([event_time, *(key for view in views for key in view.join_keys)])
        missing = [name for name in needed if name not in labels.column_names]
        if missing:
            raise DataError(
                f"the entity rows have no column {', '.join(map(repr, missing))}",
                allowed=f"they have {', '.join(labels.column_names)}",
                next_step="add the join keys of every view that is asked for",
            )
        taken = sorted({n for view in views for n in view.features} & set(labels.column_names))
        if taken:
            raise DeclarationError(
                f"the entity rows have columns named like features: {', '.join(taken)}",
                next_step="rename them, or ask for full_feature_names",
            )

        def read() -> pa.Table:
            keys = source_files.to_polars(labels.select(list(needed)))
            checked = point_in_time.plan(
                keys.schema,
                views,
                event_time=event_time,
                known_at_label_time=filter_by_created_timestamp,
            )
            features = to_plain_arrow(_joined(checked, keys, config).drop(needed))
            table = labels
            for name in features.column_names:
                table = table.append_column(name, features[name])
            return table

        return PenstockRetrievalJob(
            read,
            config=config,
            full_feature_names=full_feature_names,
            on_demand_feature_views=on_demand,
            metadata=_metadata(feature_refs, labels, event_time),
        )

    @staticmethod
    def pull_latest_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> PenstockRetrievalJob:
        """Read each entity's newest row with start_date <= event time <= end_date.

        Newest by event time, then created time, then place in the table. A row with a null in
        its keys or its event time belongs to no entity and is left out.
        """

        def read() -> pa.Table:
            times = [timestamp_field]
            if created_timestamp_column:
                times.append(created_timestamp_column)
            rows = (
                source_files.between(
                    source_files.scan(data_source, config), timestamp_field, start_date, end_date
                )
                .select(list(dict.fromkeys([*join_key_columns, *feature_name_columns, *times])))
                .drop_nulls([*join_key_columns, timestamp_field])
                .collect()
            )
            if created_timestamp_column or not rows[timestamp_field].is_sorted():
                rows = rows.sort(times, nulls_last=False, maintain_order=True)
            if not join_key_columns:
                return to_plain_arrow(_with_dummy_entity(rows.tail(1)))
            return to_plain_arrow(rows.unique(join_key_columns, keep="last", maintain_order=True))

        return PenstockRetrievalJob(read, config=config)

    @staticmethod
    def pull_all_from_table_or_query(
        config: RepoConfig,
        data_source: DataSource,
        join_key_columns: list[str],
        feature_name_columns: list[str],
        timestamp_field: str,
        created_timestamp_column: str | None = None,
        start_date: datetime | None = None,
        end_date: datetime | None = None,
    ) -> PenstockRetrievalJob:
        """Read every row with start_date <= event time <= end_date, in the table's order."""

        def read() -> pa.Table:
            columns = [*join_key_columns, *feature_name_columns, timestamp_field]
            if created_timestamp_column:
                columns.append(created_timestamp_column)
            rows = (
                source_files.between(
                    source_files.scan(data_source, config), timestamp_field, start_date, end_date
                )
                .select(list(dict.fromkeys(columns)))
                .collect()
            )
            return to_plain_arrow(rows if join_key_columns else _with_dummy_entity(rows))

        return PenstockRetrievalJob(read, config=config)

    @staticmethod
    def offline_write_batch(
        config: RepoConfig,
        feature_view: FeatureView,
        table: pa.Table,
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Append rows to the view's source: a Delta commit, or a Parquet file replaced whole."""
        source_files.append(feature_view.batch_source, table, config)
        if progress is not None:
            progress(table.num_rows)

    @staticmethod
    def write_logged_features(
        config: RepoConfig,
        data: pa.Table | Path,
        source: LoggingSource,
        logging_config: LoggingConfig,
        registry: BaseRegistry,
    ) -> None:
        """Add logged features as new files to the Parquet folder of a FileLoggingDestination."""
        destination = logging_config.destination
        if not isinstance(destination, FileLoggingDestination):
            raise DeclarationError(
                f"features cannot be logged to {type(destination).__name__}",
                allowed="FileLoggingDestination",
            )
        location = FileSource.get_uri_for_file_path(config.repo_path, destination.path)
        filesystem, path = FileSource.create_filesystem_and_path(
            location, destination.s3_endpoint_override
        )
        logged = pq.read_table(data) if isinstance(data, Path) else data
        pads.write_dataset(
            logged,
            base_dir=path,
            format="parquet",
            filesystem=filesystem,
            basename_template=f"{datetime.now(UTC):%Y%m%dT%H%M%S.%f}-{{i}}.parquet",
            partitioning=destination.partition_by,
            existing_data_behavior="overwrite_or_ignore",
        )


def _labels(entity_df: EntityRows | str | None) -> tuple[pa.Table, str]:
    """The entity rows as Arrow with their columns as they are, and their event time's column."""
    if isinstance(entity_df, pl.DataFrame):
        table = to_plain_arrow(entity_df)
    elif isinstance(entity_df, pa.Table):
        table = entity_df
    elif isinstance(entity_df, pd.DataFrame):
        frame = entity_df
        if _EVENT_TIMESTAMP in frame and frame[_EVENT_TIMESTAMP].dtype == object:
            # Texts and mixed zones have no Arrow type of their own; a naive time is UTC.
            frame = frame.assign(
                **{_EVENT_TIMESTAMP: pd.to_datetime(frame[_EVENT_TIMESTAMP], utc=True)}
            )
        table = pa.Table.from_pandas(frame, preserve_index=False)
    else:
        raise DataError(
            f"the entity rows are {'a query' if isinstance(entity_df, str) else entity_df!r}",
            allowed="a pandas, polars or Arrow table: Delta and Parquet take no SQL",
            next_step="read the rows first and pass them as entity_df",
        )
    if _EVENT_TIMESTAMP in table.column_names:
        return table, _EVENT_TIMESTAMP
    times = [f.name for f in table.schema if pa.types.is_timestamp(f.type)]
    if len(times) != 1:
        raise DataError(
            f"the entity rows have {len(times)} timestamp columns: {', '.join(times) or 'none'}",
            allowed=f"one named {_EVENT_TIMESTAMP}, or only one",
        )
    return table, times[0]


def _joined(checked: JoinPlan, keys: pl.DataFrame, config: RepoConfig) -> pl.DataFrame:
    """The label rows with their features, by the path that the planner chooses."""
    labels = SideSize(
        name="labels", num_rows=keys.height, row_bytes=row_bytes(keys.schema.dtypes())
    )
    path = choose_path(
        labels,
        [side_size(view) for view in checked.views],
        budget_bytes=config.offline_store.join_memory_bytes,
    )
    if path.kind == "one task":
        return point_in_time.execute_in_one_task(checked, keys)
    scratch = Path(config.repo_path or ".").resolve() / ".penstock_scratch"
    with private_folder(scratch / "joined", what="the result of a join") as folder:
        starts = range(0, keys.height, ROWS_PER_CHUNK)
        files = execute(
            checked,
            [keys.slice(start, ROWS_PER_CHUNK).lazy() for start in starts],
            _ArrowFiles(folder),
            num_buckets=path.num_buckets,
            scratch=scratch / "pieces",
            run=runner(),
        )
        # Mapped, not read: the files stay as long as somebody looks at the rows.
        tables = [pa.ipc.open_file(pa.memory_map(file)).read_all() for file in files]
        return source_files.to_polars(pa.concat_tables(tables))


@dataclass(frozen=True)
class _ArrowFiles:
    """Leaves each chunk of joined rows as a file."""

    folder: Path

    def __call__(self, number: int, joined: pl.DataFrame) -> str:
        file = self.folder / f"{number}.arrow"
        write_arrow(joined, file)
        return str(file)


def view_side(
    view: FeatureView,
    features: list[str],
    config: RepoConfig,
    *,
    full_feature_names: bool = False,
    rows: pl.LazyFrame | None = None,
) -> ViewSide:
    """Describe a view and some of its features to the join.

    Args:
        view: the view.
        features: those of it that are joined.
        config: the repo's configuration.
        full_feature_names: name the features `view__feature`.
        rows: the source's rows, where they are not the newest version's.

    Raises:
        DeclarationError: the view's source is of a kind that this store does not read.
    """
    source = source_files.known(view.batch_source)
    frame = source_files.scan(source, config) if rows is None else rows
    # What Feast calls a column -> what the table calls it.
    stored = {new: old for old, new in source.field_mapping.items()}
    keys = [e.name for e in view.entity_columns if e.name != DUMMY_ENTITY_ID]
    prefix = f"{view.projection.name_alias or view.name}__" if full_feature_names else ""
    created = source.created_timestamp_column
    return ViewSide(
        name=view.name,
        frame=frame,
        join_keys=tuple(view.projection.join_key_map.get(key, key) for key in keys),
        source_keys=tuple(stored.get(key, key) for key in keys),
        event_time=stored.get(source.timestamp_field, source.timestamp_field),
        created_time=stored.get(created, created) if created else None,
        features={f"{prefix}{name}": stored.get(name, name) for name in features},
        ttl=view.ttl,
    )


def _metadata(feature_refs: list[str], labels: pa.Table, event_time: str) -> RetrievalMetadata:
    times = pl.Series(labels[event_time])
    first, last = times.min(), times.max()
    return RetrievalMetadata(
        features=feature_refs,
        keys=[name for name in labels.column_names if name != event_time],
        min_event_timestamp=first if isinstance(first, datetime) else None,
        max_event_timestamp=last if isinstance(last, datetime) else None,
    )


def _with_dummy_entity(rows: pl.DataFrame) -> pl.DataFrame:
    """The column that Feast looks a view without entities up by."""
    return rows.with_columns(pl.lit(DUMMY_ENTITY_VAL).alias(DUMMY_ENTITY_ID))
