import dataclasses

import polars as pl
import pytest

from data_room import SPILLS, settings_in, spills
from penstock.data import quarantine, tables
from penstock.data.checks import ROW
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource
from penstock.errors import BusyError
from penstock.features.stream_table import (
    BAD_EVENTS,
    NO_VERSION,
    SOURCE,
    KeyMemory,
    Pending,
    StreamTable,
)


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


@pytest.fixture
def table(settings):
    return StreamTable(settings, SPILLS)


@pytest.fixture
def keys():
    return KeyMemory(SPILLS)


def pending(num_rows, first=0, *, num_bad=0, end=None) -> Pending:
    rows = spills(num_rows, first=first)
    kept = rows.with_columns(pl.lit("log").alias(SOURCE), pl.col("id").alias(ROW))
    bad = pl.DataFrame(
        [("log", 100 + n, "*", "json", None, "{") for n in range(num_bad)],
        schema=BAD_EVENTS,
        orient="row",
    )
    return Pending(
        kept=[kept],
        bad=[bad],
        num_read=num_rows + num_bad,
        positions={"log": first + num_rows if end is None else end},
    )


def quarantined(settings) -> pl.DataFrame:
    return quarantine.read(settings, SPILLS.name).collect()


class TestFlush:
    def test_it_lands_with_its_number_and_positions(self, table, keys):
        assert table.landed().model_dump() == {"version": NO_VERSION, "flush": 0, "positions": {}}
        flushed = table.flush(pending(3, num_bad=2), 1, keys=keys).flushed
        assert (flushed.num_read, flushed.num_kept, flushed.num_quarantined) == (5, 3, 2)
        table.flush(pending(2, first=3), 2, keys=keys)
        assert table.landed().model_dump() == {
            "version": 1,
            "flush": 2,
            "positions": {"log": 5},
        }

    def test_bad_events_are_seen_with_their_place_once_they_landed(self, settings, table, keys):
        table.flush(pending(1, num_bad=2), 1, keys=keys)
        assert quarantined(settings).select("source", "row", "rule").rows() == [
            ("log", 100, "json"),
            ("log", 101, "json"),
        ]

    def test_a_number_lands_once_and_the_late_one_is_told(self, settings, table, keys):
        table.flush(pending(1, num_bad=1), 1, keys=keys)
        with pytest.raises(BusyError, match="another stream"):
            table.flush(pending(1, first=5, num_bad=1), 1, keys=keys)
        assert tables.latest(settings, SPILLS.name).num_rows == 1
        # What it had put into quarantine is not seen, and the next start removes it.
        folder = tables.folder(settings, SPILLS.quarantine_name)
        assert (quarantined(settings).height, folder.scan().collect().height) == (1, 2)
        table.clear()
        assert (quarantined(settings).height, folder.scan().collect().height) == (1, 1)

    def test_rows_whose_keys_the_table_has_are_set_aside(self, settings, table, keys):
        table.flush(pending(5), 1, keys=keys)
        forgetful = KeyMemory(SPILLS, limit=1)
        outcome = table.flush(pending(5, first=3), 2, keys=forgetful)
        assert outcome.again["id"].to_list() == [3, 4]
        assert outcome.flushed.num_kept == 3
        bad = quarantined(settings)
        assert bad.select("source", "row", "column", "rule", "value").rows() == [
            ("log", 3, "id", "unique", "3"),
            ("log", 4, "id", "unique", "4"),
        ]

    def test_a_table_without_a_key_takes_what_it_is_sent(self, settings):
        keyless = dataclasses.replace(SPILLS, key=())
        table, keys = StreamTable(settings, keyless), KeyMemory(keyless)
        for number in (1, 2):
            rows = pending(3)
            assert keys.take(rows.kept[0]) == []
            table.flush(rows, number, keys=keys)
        assert tables.latest(settings, SPILLS.name).num_rows == 6


class TestIsOurs:
    def test_flushes_are_and_an_ingest_is_not(self, settings, table, keys, tmp_path):
        table.flush(pending(1), 1, keys=keys)
        table.flush(pending(1, first=1), 2, keys=keys)
        assert table.is_ours(NO_VERSION, max_flush=2)
        assert table.is_ours(1, max_flush=2)
        assert not table.is_ours(NO_VERSION, max_flush=1)
        assert not table.is_ours(5, max_flush=2)
        spills(1, first=7).write_parquet(tmp_path / "more.parquet")
        ingest(settings, SPILLS, [FileSource(path=tmp_path / "more.parquet")])
        assert not table.is_ours(1, max_flush=2)

    def test_a_flush_with_rows_that_had_been_counted_in_error_is_not(self, table, keys):
        table.flush(pending(2), 1, keys=keys)
        table.flush(pending(2, first=1), 2, keys=KeyMemory(SPILLS, limit=1))
        assert not table.is_ours(0, max_flush=2)


class TestKeyMemory:
    def test_it_knows_what_it_took_and_what_the_table_has(self, settings, table, keys):
        table.flush(pending(10), 1, keys=keys)
        memory = KeyMemory(SPILLS)
        memory.seed(tables.folder(settings, SPILLS.name))
        assert memory.has_all_of(0)
        assert memory.take(spills(4, first=8)) == [0, 1]
        assert memory.take(spills(4, first=10)) == [0, 1]

    def test_of_a_large_table_the_newest_are_known(self, settings, table, keys):
        table.flush(pending(10), 1, keys=keys)
        memory = KeyMemory(SPILLS, limit=8)
        memory.seed(tables.folder(settings, SPILLS.name))
        assert not memory.has_all_of(0)
        assert memory.take(spills(10)) == [6, 7, 8, 9]

    def test_the_older_generation_is_forgotten_when_the_younger_is_full(self, settings):
        memory = KeyMemory(SPILLS, limit=8)
        memory.seed(tables.folder(settings, SPILLS.name))
        memory.take(spills(4))
        assert memory.has_all_of(NO_VERSION)
        memory.take(spills(4, first=4))
        assert not memory.has_all_of(NO_VERSION)
        assert memory.take(spills(4, first=4)) == [0, 1, 2, 3]
        assert memory.take(spills(4)) == []

    def test_what_lands_keeps_it_whole_unless_others_wrote_in_between(self, settings, table):
        memory = KeyMemory(SPILLS)
        memory.seed(tables.folder(settings, SPILLS.name))
        memory.landed(NO_VERSION, 0)
        assert memory.has_all_of(0)
        memory.landed(1, 2)
        assert not memory.has_all_of(2)

    def test_rows_are_told_apart_by_the_whole_of_their_key(self):
        memory = KeyMemory(dataclasses.replace(SPILLS, key=("id", "at")))
        rows = spills(2)
        assert memory.take(rows) == []
        assert memory.take(rows.with_columns(pl.col("at").reverse())) == []
        assert memory.take(rows) == [0, 1]
