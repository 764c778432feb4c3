import polars as pl
import pytest
from feast import FileSource
from feast.data_format import DeltaFormat

from feast_repo import ROWS, file_source, open_store, readings
from penstock.data import tables
from penstock.errors import DataError, DeclarationError
from penstock.features import source_files


@pytest.fixture
def config(tmp_path):
    return open_store(tmp_path).config


def test_a_path_is_relative_to_the_repo(config, tmp_path):
    readings(ROWS).write_parquet(tmp_path / "r.parquet")
    source = FileSource(path="r.parquet", timestamp_field="seen_at")
    assert source_files.scan(source, config).collect().height == len(ROWS)


def test_a_pattern_reads_every_file_it_fits_and_a_file_is_never_a_pattern(config, tmp_path):
    for name in ("a1", "a2", "a[12]"):
        readings(ROWS[:1]).write_parquet(tmp_path / f"{name}.parquet")
    assert source_files.scan(file_source(tmp_path / "a?.parquet"), config).collect().height == 2
    assert source_files.scan(file_source(tmp_path / "a[12].parquet"), config).collect().height == 1


def test_a_missing_file_is_named(config, tmp_path):
    with pytest.raises(DataError, match=r"no file .*gone\.parquet"):
        source_files.scan(file_source(tmp_path / "gone.parquet"), config)


def test_a_file_source_may_be_a_delta_table(config, tmp_path):
    tables.at_path(tmp_path / "t").commit(readings(ROWS), mode="append")
    source = file_source(tmp_path / "t", file_format=DeltaFormat())
    source_files.append(source, readings(ROWS[:1]).to_arrow(), config)
    assert source_files.scan(source, config).collect().height == len(ROWS) + 1


def test_a_view_without_a_batch_source_is_refused():
    with pytest.raises(DeclarationError, match="without a batch source"):
        source_files.known(None)


def test_rows_of_another_type_are_refused_and_the_file_stays(config, tmp_path):
    readings(ROWS).write_parquet(tmp_path / "r.parquet")
    before = (tmp_path / "r.parquet").read_bytes()
    rows = readings(ROWS).with_columns(level=pl.lit("high"))
    with pytest.raises(DataError, match="do not fit"):
        source_files.append(file_source(tmp_path / "r.parquet"), rows.to_arrow(), config)
    assert (tmp_path / "r.parquet").read_bytes() == before


def test_a_folder_of_several_files_is_never_replaced(config, tmp_path):
    source = file_source(tmp_path / "many")
    new = readings(ROWS[:1]).to_arrow()
    assert source_files.replace(source, new, config, allow_overwrite=False)
    assert source_files.scan(source, config).collect().height == 1
    assert not source_files.replace(source, new, config, allow_overwrite=False)
    assert source_files.replace(source, new, config, allow_overwrite=True)
    assert source_files.scan(source, config).collect().height == 1
    source_files.append(source, new, config)
    with pytest.raises(DataError, match="2 files"):
        source_files.replace(source, new, config, allow_overwrite=True)
    assert source_files.scan(source, config).collect().height == 2
    assert [path.name for path in tmp_path.iterdir() if "many" in path.name] == ["many"]


@pytest.mark.parametrize("name", ["many", "one.parquet"])
def test_a_write_that_breaks_off_leaves_the_rows_as_they_were(config, tmp_path, monkeypatch, name):
    source = file_source(tmp_path / name)
    source_files.replace(source, readings(ROWS).to_arrow(), config, allow_overwrite=False)

    def break_off(_table, file):
        file.write_bytes(b"PAR1half")
        raise OSError("the disk is full")

    monkeypatch.setattr(source_files.pq, "write_table", break_off)
    more = readings(ROWS[:1]).to_arrow()
    with pytest.raises(OSError, match="disk is full"):
        source_files.append(source, more, config)
    with pytest.raises(OSError, match="disk is full"):
        source_files.replace(source, more, config, allow_overwrite=True)
    assert source_files.scan(source, config).collect().height == len(ROWS)


def test_rows_are_added_to_a_folder_as_a_file_of_their_own(config, tmp_path):
    source = file_source(tmp_path / "many")
    source_files.replace(source, readings(ROWS).to_arrow(), config, allow_overwrite=False)
    source_files.append(source, readings(ROWS[:1]).to_arrow(), config)
    assert source_files.scan(source, config).collect().height == len(ROWS) + 1
    assert len(list((tmp_path / "many").iterdir())) == 2
