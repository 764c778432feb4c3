"""Materialization for any Feast repo: columns all the way, and each entity's newest row.

In feature_store.yaml:

    batch_engine:
        type: penstock.features.compute_engine.PenstockComputeEngine

Feast calls it from `materialize` and `materialize_incremental`, and moves its watermark when it has
returned. On Penstock's online stores an older row never replaces a newer one, so a run that was
killed, or that runs beside pushes, is simply run again. A source beyond the offline store's
`join_memory_bytes` goes in pieces, on Ray where this process is connected to one. On other stores
it writes as Feast does.
"""

from pathlib import Path
from typing import Any, cast

import polars as pl
from feast.infra.common.materialization_job import (
    MaterializationJob,
    MaterializationJobStatus,
    MaterializationTask,
)
from feast.infra.common.retrieval_task import HistoricalRetrievalTask
from feast.infra.compute_engines.base import ComputeEngine
from feast.infra.offline_stores.offline_store import RetrievalJob
from feast.infra.registry.base_registry import BaseRegistry
from feast.repo_config import FeastConfigBaseModel
from feast.utils import _convert_arrow_to_proto

from penstock.cluster.tasks import runner
from penstock.features.newest_rows import bring_newest, newest_rows
from penstock.features.online_rows import RowStore
from penstock.progress import Progress

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
            config, period = self.repo_config, (task.start_time, task.end_time)
            if hasattr(self.online_store, "write_rows"):
                bring_newest(
                    config,
                    self.offline_store,
                    cast(RowStore, self.online_store),
                    view,
                    period,
                    scratch=Path(config.repo_path or ".").resolve() / ".penstock_scratch" / "rows",
                    run=runner(),
                    progress=tell,
                )
            else:
                rows = newest_rows(config, self.offline_store, view, *period)
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
