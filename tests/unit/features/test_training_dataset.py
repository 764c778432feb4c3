"""A training set as a Ray Dataset, on the test run's Ray."""

from pathlib import Path

import polars as pl
import pytest
import ray
from polars.testing import assert_frame_equal

from payments import (
    FIRST_DAY,
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    build_features,
    end_of_day,
    settings_in,
)
from penstock.cluster import connection
from penstock.features import training_set as training_set_module
from penstock.features.training_set import (
    build_training_set,
    read_training_set,
    training_dataset,
)

pytestmark = [pytest.mark.ray, pytest.mark.slow]


@pytest.fixture
def connected(project, ray_cluster):
    connection.connect(project.settings)
    yield
    ray.shutdown()


def test_workers_read_the_files_and_a_damaged_one_is_refused(connected, tmp_path, monkeypatch):
    monkeypatch.setattr(training_set_module, "_ROWS_PER_FILE", 200)
    made = build_training_set(
        build_features(settings_in(tmp_path)),
        use_case=USE_CASE,
        service=SERVICE,
        label_table=TRANSACTIONS,
        label="TX_FRAUD",
        start=FIRST_DAY,
        end=end_of_day(59),
        extra_columns=["TRANSACTION_ID"],
    )
    blocks = training_dataset(made).iter_batches(batch_size=None, batch_format="pyarrow")
    rows = pl.concat(pl.DataFrame(pl.from_arrow(block)) for block in blocks)
    expected = read_training_set(made)
    assert_frame_equal(rows.sort("TRANSACTION_ID"), expected.sort("TRANSACTION_ID"))

    file = sorted(Path(made.path).glob("data-*.parquet"))[1]
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    with pytest.raises(Exception, match="cannot be read from"):
        training_dataset(made).count()
