"""A training set as a Ray Dataset, on the test run's Ray, and as a table."""

from pathlib import Path

import polars as pl
import pytest
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
from penstock.data import tables
from penstock.errors import DataError, IntegrityError
from penstock.features import training_set as training_set_module
from penstock.features.training_set import build_training_set, read_training_set
from penstock.features.training_set_export import to_ray_dataset, to_table


@pytest.fixture
def made(tmp_path, monkeypatch):
    """A set of several files."""
    monkeypatch.setattr(training_set_module, "_ROWS_PER_FILE", 200)
    return build_training_set(
        build_features(settings_in(tmp_path)),
        use_case=USE_CASE,
        service=SERVICE,
        label_table=TRANSACTIONS,
        label="TX_FRAUD",
        start=FIRST_DAY,
        end=end_of_day(59),
        extra_columns=["TRANSACTION_ID"],
    )


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


class TestToTable:
    TABLE = "card_fraud.spring"

    def test_every_row_stands_in_it(self, made, tmp_path):
        settings = settings_in(tmp_path)
        heard = []
        version = to_table(
            settings, made, self.TABLE, lambda _, *numbers, **__: heard.append(numbers)
        )
        assert version.metadata["training_set"] == made.id
        stored = tables.scan(settings, self.TABLE).sort("TX_DATETIME").collect()
        assert_frame_equal(stored, read_training_set(made))
        assert heard[-1] == (made.num_rows, made.num_rows)
        # Asked again, nothing is written.
        assert to_table(settings, made, self.TABLE) == version

    def test_a_table_of_something_else_is_not_replaced(self, made, tmp_path):
        with pytest.raises(DataError, match="something else"):
            to_table(settings_in(tmp_path), made, TRANSACTIONS)

    def test_a_damaged_file_leaves_the_table_as_it_was(self, made, tmp_path):
        settings = settings_in(tmp_path)
        damage(sorted(Path(made.path).glob("data-*.parquet"))[1])
        with pytest.raises(IntegrityError, match="cannot be read from"):
            to_table(settings, made, self.TABLE)
        assert not tables.exists(settings, self.TABLE)


@pytest.mark.ray
def test_workers_read_the_files_and_a_damaged_one_is_refused(connected, made):
    blocks = to_ray_dataset(made).iter_batches(batch_size=None, batch_format="pyarrow")
    rows = pl.concat(pl.DataFrame(pl.from_arrow(block)) for block in blocks)
    expected = read_training_set(made)
    assert_frame_equal(rows.sort("TRANSACTION_ID"), expected.sort("TRANSACTION_ID"))

    damage(sorted(Path(made.path).glob("data-*.parquet"))[1])
    with pytest.raises(Exception, match="cannot be read from"):
        to_ray_dataset(made).count()
