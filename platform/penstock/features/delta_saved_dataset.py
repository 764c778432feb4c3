"""Feast's saved datasets, kept in Delta tables."""

import json

from feast.data_source import DataSource
from feast.protos.feast.core.SavedDataset_pb2 import (
    SavedDatasetStorage as SavedDatasetStorageProto,
)
from feast.saved_dataset import SavedDatasetStorage

from penstock.errors import DeclarationError
from penstock.features.delta_source import DeltaSource


class SavedDatasetDeltaStorage(SavedDatasetStorage):
    """Where `RetrievalJob.persist` puts a training set: a Delta table by its name or path.

    Feast reads a saved dataset back by a column named `event_timestamp`.
    """

    _proto_attr_name = "custom_storage"

    def __init__(self, *, table: str | None = None, path: str | None = None) -> None:
        self._source = DeltaSource(table=table, path=path, timestamp_field="event_timestamp")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SavedDatasetDeltaStorage) and self._source == other._source

    def __hash__(self) -> int:
        return hash(self._source)

    @staticmethod
    def from_proto(storage_proto: SavedDatasetStorageProto) -> "SavedDatasetDeltaStorage":
        """Read what `to_proto` wrote into Feast's registry."""
        options = json.loads(storage_proto.custom_storage.configuration)
        return SavedDatasetDeltaStorage(table=options.get("table"), path=options.get("path"))

    def to_proto(self) -> SavedDatasetStorageProto:
        """Write it for Feast's registry, with the class that can read it back."""
        return self._custom_storage_proto(self._source.to_proto().custom_options)

    def to_data_source(self) -> DataSource:
        """The source that reads what was saved."""
        return self._source

    @staticmethod
    def from_data_source(data_source: DataSource) -> "SavedDatasetDeltaStorage":
        """The storage behind a DeltaSource."""
        if not isinstance(data_source, DeltaSource):
            raise DeclarationError(
                f"{type(data_source).__name__} is no place for a saved dataset of Penstock",
                allowed="DeltaSource",
            )
        return SavedDatasetDeltaStorage(table=data_source.table, path=data_source.path)
