import shutil

import polars as pl
import pytest

from data_room import SPILLS, settings_in, spills
from penstock.data import staging
from penstock.data.source_kinds import FileSource
from penstock.data.sources import inspect
from penstock.data.staging import StagedUnit, kept_rows, repeated_keys, stage, staging_folder


def staged(folder, *frames):
    units = []
    for number, frame in enumerate(frames):
        path = folder / f"{number}.parquet"
        frame.write_parquet(path)
        (unit,) = inspect(FileSource(path=path), number, SPILLS).units
        units.append(StagedUnit.model_validate(stage(unit, table=SPILLS, folder=str(folder))))
    return units


class TestStagingFolder:
    def test_what_a_dead_ingest_left_is_cleared_but_a_living_ones_is_not(self, tmp_path):
        settings = settings_in(tmp_path)
        with staging_folder(settings, SPILLS) as living:
            dead = living.parent / "dead"
            dead.mkdir()
            (dead / "rows.arrow").write_bytes(b"x")
            with staging_folder(settings, SPILLS) as own:
                assert own.is_dir()
                assert living.is_dir()
                assert not dead.exists()
        assert not living.exists()

    def test_a_folder_that_its_owner_removes_at_the_same_moment_is_no_error(
        self, tmp_path, monkeypatch
    ):
        settings = settings_in(tmp_path)
        root = settings.storage_path / "staging" / SPILLS.name
        for name in ("before its lock", "after its lock"):
            (root / name).mkdir(parents=True)
        lock, remove = staging.exclusive, shutil.rmtree

        def lock_too_late(path, **given):
            if path.parent.name == "before its lock":
                remove(path.parent)
                raise FileNotFoundError(path)
            return lock(path, **given)

        def remove_too_late(path, **given):
            remove(path)
            remove(path, **given)

        monkeypatch.setattr(staging, "exclusive", lock_too_late)
        monkeypatch.setattr(shutil, "rmtree", remove_too_late)
        with staging_folder(settings, SPILLS) as own:
            assert [path.name for path in root.iterdir() if path.is_dir()] == [own.name]


class TestRepeatedKeys:
    def test_the_first_row_of_a_key_is_new_over_files_and_the_table(self, tmp_path):
        units = staged(tmp_path, spills(3), spills(3, first=2), spills(1, first=9))
        marked = repeated_keys(units, SPILLS, spills(1, first=9).lazy())
        assert marked.to_list() == [False, False, False, True, False, False, True]
        new = pl.concat([new for _, new, _ in kept_rows(units, marked)])
        assert new["id"].to_list() == [0, 1, 2, 3, 4]

    @pytest.mark.parametrize("stored", [None, spills(0).lazy()])
    def test_nothing_is_repeated_where_nothing_is_stored(self, tmp_path, stored):
        units = staged(tmp_path, spills(4))
        assert not repeated_keys(units, SPILLS, stored).any()
