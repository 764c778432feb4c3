import pytest
from feast import FileSource
from feast.saved_dataset import SavedDatasetStorage

from penstock.errors import DeclarationError
from penstock.features.delta_saved_dataset import SavedDatasetDeltaStorage
from penstock.features.delta_source import DeltaSource


@pytest.mark.parametrize("place", [{"table": "plant.saved"}, {"path": "some/table"}])
def test_feasts_registry_gives_back_what_it_was_given(place):
    storage = SavedDatasetDeltaStorage(**place)
    again = SavedDatasetStorage.from_proto(storage.to_proto())
    assert again == storage
    assert again.to_data_source() == DeltaSource(**place, timestamp_field="event_timestamp")
    assert SavedDatasetDeltaStorage.from_data_source(storage.to_data_source()) == storage


def test_only_a_delta_source_stands_behind_it():
    with pytest.raises(DeclarationError, match="FileSource"):
        SavedDatasetDeltaStorage.from_data_source(FileSource(path="a.parquet"))
