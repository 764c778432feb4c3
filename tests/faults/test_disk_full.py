"""A disk that is full while a table is written: a small file system in memory, mounted for real."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from data_room import settings_in
from penstock.data import tables
from penstock.errors import StorageFullError
from penstock.settings import Settings

TABLE = "harbour.readings"
SMALL, LARGE = "4m", "64m"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL}", "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"mounting a file system is not allowed here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        # Lazy: a writer that failed may have its file open until it is collected.
        subprocess.run(["umount", "--lazy", folder], check=True)


def rows(num_rows: int) -> pl.DataFrame:
    # Random numbers: nothing that a codec could shrink.
    return pl.DataFrame({"value": np.random.default_rng(1).random(num_rows)})


def enlarge(disk: Path) -> None:
    subprocess.run(["mount", "-o", f"remount,size={LARGE}", disk], check=True)


class TestFullDisk:
    def test_the_table_stays_as_it_was_and_the_same_call_finishes_once_there_is_room(self, disk):
        settings = settings_in(disk)
        small, large = rows(10_000), rows(1_000_000)
        before = tables.commit(settings, TABLE, small, mode="append")
        with pytest.raises(StorageFullError, match="make room") as refused:
            tables.commit(settings, TABLE, large, mode="append")
        assert refused.value.exit_code == 1
        assert self.stored(settings) == (before.version, small.height)
        enlarge(disk)
        after = tables.commit(settings, TABLE, large, mode="append")
        assert self.stored(settings) == (after.version, small.height + large.height)
        assert after.version == before.version + 1

    def test_a_table_that_never_was_is_not_there_afterwards(self, disk):
        settings = settings_in(disk)
        with pytest.raises(StorageFullError):
            tables.commit(settings, TABLE, rows(1_000_000), mode="append")
        assert not tables.exists(settings, TABLE)

    def test_written_in_place_a_sound_file_would_be_lost(self, disk):
        """What the commit is for: the same disk and the same rows without it."""
        file = disk / "readings.parquet"
        rows(10_000).write_parquet(file)
        with pytest.raises(Exception, match="No space left"):
            rows(1_000_000).write_parquet(file)
        with pytest.raises(pl.exceptions.ComputeError):
            pl.read_parquet(file)

    @staticmethod
    def stored(settings: Settings) -> tuple[int, int]:
        found = tables.scan(settings, TABLE).select(pl.len()).collect().item()
        return tables.latest(settings, TABLE).version, found
