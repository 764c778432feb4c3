"""Materialization for any Feast repo: columns all the way, and each entity's newest row.

In feature_store.yaml:

    batch_engine:
        type: penstock.features.compute_engine.PenstockComputeEngine

Feast calls it from `materialize` and `materialize_incremental`, and moves its watermark when it has
returned. On Penstock's online stores an older row never replaces a newer one, so a run that was
killed, or that runs beside pushes, is simply run again. On other stores it writes as Feast does.
"""

from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, cast

import polars as pl
from feast import FeatureView
from feast.data_source import DataSource
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.common.retrieval_task import HistoricalRetrievalTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.offline_stores.offline_store import OfflineStore, RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel, RepoConfig
from feast.utils import _convert_arrow_to_proto

from penstock.errors import DeclarationError
from penstock.features import entity_keys
from penstock.features.online_rows import RowStore, WrittenRows
from penstock.progress import Progress, silent

# Bounds what is held as Python objects at a time; the columns themselves stay in Arrow.
_ROWS_PER_BLOCK = 20_000


class PenstockComputeEngineConfig(FeastConfigBaseModel):
    """The `batch_engine` section of feature_store.yaml."""

    type: str = "penstock.features.compute_engine.PenstockComputeEngine"


class PenstockComputeEngine(ComputeEngine):
    """Writes the newest row of each entity, a block at a time."""

    def update(self, *_arguments: Any, **_options: Any) -> None:
        """Nothing to prepare."""

    def teardown_infra(self, *_arguments: Any, **_options: Any) -> None:
        """Nothing to take down."""

    def _materialize_one(
        self, registry: BaseRegistry, task: MaterializationTask, **_options: Any
    ) -> "FinishedJob":
        bar = task.tqdm_builder(0) if task.tqdm_builder else None

        def tell(step: str, done: int, total: int | None = None, *, unit: str = "rows") -> None:
            del step, unit
            if bar is not None:
                bar.total = total
                bar.update(done - bar.n)

        view = task.feature_view
        try:
            rows = newest_rows(
                self.repo_config, self.offline_store, view, task.start_time, task.end_time
            )
            if hasattr(self.online_store, "write_rows"):
                write(self.repo_config, cast(RowStore, self.online_store), view, rows, tell)
            else:
                self._write_as_feast_does(registry, task, rows, tell)
        except Exception as error:  # noqa: BLE001  # Feast raises what the job carries
            return FinishedJob(task, error)
        finally:
            if bar is not None:
                bar.close()
        return FinishedJob(task, None)

    def _write_as_feast_does(
        self,
        registry: BaseRegistry,
        task: MaterializationTask,
        rows: pl.DataFrame,
        tell: Progress,
    ) -> None:
        view = task.feature_view
        entities = [registry.get_entity(name, task.project) for name in view.entities]
        types = {e.join_key: e.value_type for e in entities}
        for start in range(0, rows.height, _ROWS_PER_BLOCK):
            block = rows.slice(start, _ROWS_PER_BLOCK).to_arrow(
                compat_level=pl.CompatLevel.oldest()
            )
            protos = _convert_arrow_to_proto(block, view, types)
            self.online_store.online_write_batch(self.repo_config, view, protos, None)
            tell(view.name, start + len(protos), rows.height)

    def get_historical_features(
        self, registry: BaseRegistry, task: HistoricalRetrievalTask
    ) -> RetrievalJob:
        """Ask the offline store, which has its own plan for large joins."""
        return self.offline_store.get_historical_features(
            config=self.repo_config,
            feature_views=[task.feature_view],
            feature_refs=[f"{task.feature_view.name}:{f.name}" for f in task.feature_view.features],
            entity_df=task.entity_df,
            registry=registry,
            project=task.project,
            full_feature_names=task.full_feature_name,
        )


class FinishedJob(MaterializationJob):
    """What Feast asks of a materialization that has ended."""

    def __init__(self, task: MaterializationTask, error: BaseException | None) -> None:
        """Keep what was asked for and what came of it."""
        self.task = task
        self._error = error

    def status(self) -> MaterializationJobStatus:
        """Succeeded, or failed."""
        failed = self._error is not None
        return MaterializationJobStatus.ERROR if failed else MaterializationJobStatus.SUCCEEDED

    def error(self) -> BaseException | None:
        """Why it failed."""
        return self._error

    def should_be_retried(self) -> bool:
        """No: whatever failed is for the caller to decide."""
        return False

    def job_id(self) -> str:
        """The view and its period."""
        view, start, end = self.task.feature_view.name, self.task.start_time, self.task.end_time
        return f"{view}-{start}-{end}"

    def url(self) -> None:
        """There is no page to look at."""


def newest_rows(
    config: RepoConfig, offline: OfflineStore, view: FeatureView, start: datetime, end: datetime
) -> pl.DataFrame:
    """Read the newest row of each entity with start <= event time <= end, in the view's own names.

    Raises:
        DeclarationError: the view has no source to read.
    """
    source = source_of(view)
    to_source = {name: column for column, name in source.field_mapping.items()}
    job = offline.pull_latest_from_table_or_query(
        config=config,
        data_source=source,
        join_key_columns=[to_source.get(key, key) for key in view.join_keys],
        feature_name_columns=[to_source.get(f.name, f.name) for f in view.features],
        timestamp_field=source.timestamp_field,
        created_timestamp_column=source.created_timestamp_column or None,
        start_date=start if start.tzinfo else start.replace(tzinfo=UTC),
        end_date=end if end.tzinfo else end.replace(tzinfo=UTC),
    )
    frame = pl.DataFrame(pl.from_arrow(job.to_arrow())).rename(source.field_mapping, strict=False)
    return frame.drop_nulls(view.join_keys)


def write(
    config: RepoConfig,
    online: RowStore,
    view: FeatureView,
    rows: pl.DataFrame,
    progress: Progress = silent,
) -> None:
    """Write the rows to one of Penstock's online stores, in blocks."""
    step = f"materialize {view.name}"
    done = 0
    progress(step, done, rows.height)
    for block in _blocks(view, rows):
        online.write_rows(config, view, block)
        done += len(block.keys)
        progress(step, done, rows.height)
    online.mark_filled(config, view)


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


def _blocks(view: FeatureView, rows: pl.DataFrame) -> Iterator[WrittenRows]:
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
