"""The retrievals that Penstock's offline store hands back to Feast."""

import warnings
from collections.abc import Callable, Sequence

import pandas as pd
import polars as pl
import pyarrow as pa
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.offline_store import RetrievalJob, RetrievalMetadata
from feast.on_demand_feature_view import OnDemandFeatureView
from feast.repo_config import RepoConfig
from feast.saved_dataset import SavedDatasetStorage

from penstock.features import source_files
from penstock.features.delta_source import plain_type


class PenstockRetrievalJob(RetrievalJob):
    """A retrieval that runs when its result is asked for, and each time it is."""

    def __init__(
        self,
        read: Callable[[], pa.Table],
        *,
        config: RepoConfig,
        full_feature_names: bool = False,
        on_demand_feature_views: Sequence[OnDemandFeatureView] = (),
        metadata: RetrievalMetadata | None = None,
    ) -> None:
        self._read = read
        self._config = config
        self._full_feature_names = full_feature_names
        self._on_demand_feature_views = list(on_demand_feature_views)
        self._metadata = metadata

    def _to_arrow_internal(self, timeout: int | None = None) -> pa.Table:
        if timeout is not None:
            warnings.warn(
                "Penstock's offline store reads in this process and ignores the timeout",
                RuntimeWarning,
                stacklevel=3,
            )
        return self._read()

    def _to_df_internal(self, timeout: int | None = None) -> pd.DataFrame:
        frame: pd.DataFrame = self._to_arrow_internal(timeout).to_pandas()
        return frame

    @property
    def full_feature_names(self) -> bool:
        """Whether features are named `view__feature`."""
        return self._full_feature_names

    @property
    def on_demand_feature_views(self) -> list[OnDemandFeatureView]:
        """The views that Feast computes on top of what this job returns."""
        return self._on_demand_feature_views

    @property
    def metadata(self) -> RetrievalMetadata | None:
        """Which features over which keys and times."""
        return self._metadata

    def persist(
        self,
        storage: SavedDatasetStorage,
        allow_overwrite: bool | None = False,
        timeout: int | None = None,
    ) -> None:
        """Write the result, on-demand features included, to Parquet or a Delta table.

        Raises:
            SavedDatasetLocationAlreadyExists: something is there and may not be replaced.
        """
        source = storage.to_data_source()
        table = self.to_arrow(timeout=timeout)
        if not source_files.replace(
            source, table, self._config, allow_overwrite=bool(allow_overwrite)
        ):
            raise SavedDatasetLocationAlreadyExists(location=source.name)

    def supports_remote_storage_export(self) -> bool:
        """No: `persist` writes wherever the storage says."""
        return False


def to_plain_arrow(frame: pl.DataFrame) -> pa.Table:
    """One chunk a column, of the types that Feast's type map knows.

    One chunk, because Feast's local engine converts only the first batch of a table
    (`to_batches()[0]`) unless online_write_batch_size is set.
    """
    table = frame.rechunk().to_arrow(compat_level=pl.CompatLevel.oldest())
    plain = pa.schema([pa.field(f.name, plain_type(f.type)) for f in table.schema])
    return table if plain == table.schema else table.cast(plain)
