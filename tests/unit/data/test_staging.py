import polars as pl
import pytest

from data_room import SPILLS, spills
from penstock.data.source_kinds import FileSource
from penstock.data.sources import inspect
from penstock.data.staging import StagedUnit, kept_rows, repeated_keys, stage


def staged(folder, *frames):
    units = []
    for number, frame in enumerate(frames):
        path = folder / f"{number}.parquet"
        frame.write_parquet(path)
        (unit,) = inspect(FileSource(path=path), number, SPILLS).units
        units.append(StagedUnit.model_validate(stage(unit, table=SPILLS, folder=str(folder))))
    return units


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
