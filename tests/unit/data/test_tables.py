import shutil

import polars as pl
import pyarrow as pa
import pytest

from data_room import settings_in, spills
from forks import forks
from penstock.data import tables
from penstock.errors import DataError, IntegrityError, NotFoundError

NAME = "river.spills"


def commit(settings, frame, mode="append", **more):
    return tables.commit(
        settings, NAME, frame, mode=mode, partition_by="day", event_time="at", **more
    )


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


def _append_rows(root, worker):
    for number in range(3):
        commit(settings_in(root), spills(5, first=100 * worker + 10 * number))


class TestCommit:
    def test_every_version_stays_readable(self, settings):
        commit(settings, spills(3))
        commit(settings, spills(4, first=3))
        commit(settings, spills(2), mode="overwrite")
        rows = [
            tables.scan(settings, NAME, version=v).select(pl.len()).collect().item()
            for v in range(3)
        ]
        assert rows == [3, 7, 2]
        assert [v.num_rows for v in tables.history(settings, NAME)] == [2, 7, 3]
        assert tables.latest(settings, NAME, version=1).num_rows == 7

    def test_rows_come_back_as_they_went_in_without_the_partition(self, settings):
        commit(settings, spills(50))
        back = tables.scan(settings, NAME).sort("id").collect()
        assert back.equals(spills(50))
        assert back.schema == spills(1).schema
        folder = tables.folder(settings, NAME)
        assert folder.partition_by() == "day"
        assert (folder.path / "__day=2024-05-01").is_dir()

    def test_a_transaction_lands_once(self, settings):
        first = commit(settings, spills(3), transactions={"file-1": 1})
        again = commit(settings, spills(3), transactions={"file-1": 1})
        assert again == first
        known = tables.folder(settings, NAME).known_transactions(["file-1", "file-2"])
        assert known == {"file-1"}

    def test_a_rising_transaction_lands_with_each_higher_number(self, settings):
        folder = tables.folder(settings, NAME)
        assert folder.transaction_number("stream") is None
        for number, version in ((3, 0), (3, 0), (2, 0), (4, 1)):
            assert commit(settings, spills(3), transactions={"stream": number}).version == version
        assert folder.transaction_number("stream") == 4
        assert folder.transaction_number("other") is None

    def test_the_newest_version_with_a_word_is_found_behind_others(self, settings):
        folder = tables.folder(settings, NAME)
        assert (folder.version(), folder.newest_with("stream")) == (None, None)
        commit(settings, spills(1), metadata={"stream": "a"})
        commit(settings, spills(1), metadata={"ingest": "b"})
        assert folder.version() == 1
        assert folder.newest_with("stream").metadata["stream"] == "a"
        assert folder.newest_with("source") is None

    def test_metadata_is_kept_with_its_version(self, settings):
        commit(settings, spills(1), metadata={"source": "a"})
        commit(settings, spills(1), metadata={"source": "b"})
        assert tables.latest(settings, NAME, version=0).metadata["source"] == "a"

    def test_a_stream_that_breaks_leaves_nothing(self, settings):
        commit(settings, spills(3))

        def batches():
            yield from spills(5).to_arrow().to_batches()
            raise KeyError("the source broke")

        stream = pa.RecordBatchReader.from_batches(spills(1).to_arrow().schema, batches())
        with pytest.raises(KeyError, match="the source broke"):
            commit(settings, stream)
        assert tables.latest(settings, NAME).num_rows == 3

    def test_a_stream_of_batches_is_written_whole(self, settings):
        frame = spills(1000)
        commit(settings, frame.to_arrow().to_reader(max_chunksize=64))
        assert tables.scan(settings, NAME).sort("id").collect().equals(frame)

    @pytest.mark.parametrize(
        "frame",
        [
            spills(2).drop("gate"),
            spills(2).with_columns(extra=pl.lit(1)),
            spills(2).with_columns(pl.col("litres").cast(pl.String)),
        ],
        ids=["missing column", "further column", "other type"],
    )
    def test_an_append_of_other_columns_is_refused(self, settings, frame):
        commit(settings, spills(3))
        with pytest.raises(DataError, match=r"differ from table river\.spills"):
            commit(settings, frame)
        assert tables.latest(settings, NAME).num_rows == 3

    def test_an_overwrite_may_change_the_columns(self, settings):
        commit(settings, spills(3))
        commit(settings, spills(3).drop("gate"), mode="overwrite")
        assert "gate" not in tables.scan(settings, NAME).collect_schema()
        assert "gate" in tables.scan(settings, NAME, version=0).collect_schema()

    def test_types_are_brought_to_those_that_tables_keep(self, settings):
        frame = pl.DataFrame(
            {"n": [1, 2], "c": ["a", "b"], "t": [0, 1]},
            schema={"n": pl.UInt32, "c": pl.Categorical, "t": pl.Datetime("ns")},
        )
        tables.commit(settings, "river.kinds", frame, mode="append")
        assert dict(tables.scan(settings, "river.kinds").collect_schema()) == {
            "n": pl.Int64,
            "c": pl.String,
            "t": pl.Datetime("us", "UTC"),
        }

    def test_a_column_that_no_table_keeps_is_refused_by_name(self, settings):
        with pytest.raises(DataError, match="'nothing' is Null"):
            tables.commit(settings, NAME, pl.DataFrame({"nothing": [None]}), mode="append")

    def test_writers_at_once_all_land(self, tmp_path):
        # Each process begins with everything imported, so that they do meet.
        workers = [forks.Process(target=_append_rows, args=(tmp_path, n)) for n in range(2)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        settings = settings_in(tmp_path)
        assert [w.exitcode for w in workers] == [0, 0]
        assert tables.scan(settings, NAME).collect()["id"].n_unique() == 30
        assert len(tables.history(settings, NAME)) == 6
        assert tables.column_statistics(settings, NAME)[0].count == 30


class TestStatistics:
    def test_each_version_has_its_own(self, settings):
        commit(settings, spills(3))
        commit(settings, spills(4, first=10))
        commit(settings, spills(1, first=5), mode="overwrite")
        found = [tables.column_statistics(settings, NAME, version=v)[0] for v in range(3)]
        assert [(c.count, c.min, c.max) for c in found] == [(3, 0, 2), (7, 0, 13), (1, 5, 5)]

    def test_another_writers_commit_is_measured(self, settings):
        commit(settings, spills(6))
        tables.folder(settings, NAME).delete_rows("gate", ["north"])
        assert tables.column_statistics(settings, NAME)[0].count == 3

    def test_lost_statistics_are_an_integrity_error(self, settings):
        commit(settings, spills(6))
        shutil.rmtree(tables.folder(settings, NAME).path / "_penstock_statistics")
        with pytest.raises(IntegrityError):
            tables.column_statistics(settings, NAME)


class TestNames:
    def test_tables_are_listed_by_name(self, settings):
        assert tables.list_tables(settings) == []
        commit(settings, spills(1))
        assert tables.list_tables(settings) == [NAME]
        assert tables.exists(settings, NAME)

    def test_an_unknown_table_or_version_says_what_there_is(self, settings):
        commit(settings, spills(1))
        with pytest.raises(NotFoundError, match=r"did you mean 'river.spills'"):
            tables.scan(settings, "river.spill")
        with pytest.raises(NotFoundError, match="0 to 0"):
            tables.latest(settings, NAME, version=4)

    def test_a_folder_works_without_a_project(self, tmp_path):
        path = tmp_path / "anywhere"
        assert not tables.exists_path(path)
        tables.at_path(path).commit(spills(2), mode="append")
        assert tables.scan_path(path).collect().height == 2
