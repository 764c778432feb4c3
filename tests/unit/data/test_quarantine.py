from datetime import UTC, datetime

import polars as pl
import pytest

from data_room import SPILLS, settings_in, spills
from penstock.data import quarantine, tables
from penstock.errors import NotFoundError


def bad(digest, row):
    return pl.DataFrame(
        [{"source": "x", "digest": digest, "row": row, "column": "id", "rule": "type",
          "value": "?", "record": "{}", "ingested_at": datetime(2024, 5, 1, tzinfo=UTC)}],
        schema=quarantine.QUARANTINED,
    )  # fmt: skip


def land(settings, digest):
    tables.commit(
        settings, SPILLS.name, spills(1), mode="append", partition_by="day", event_time="at",
        transactions={quarantine.transaction(digest): 1},
    )  # fmt: skip


def shown(settings):
    return quarantine.read(settings, SPILLS.name).sort("row").select("digest", "row").collect()


class TestQuarantine:
    def test_rows_of_a_source_that_did_not_land_are_not_shown(self, tmp_path):
        settings = settings_in(tmp_path)
        land(settings, "a")
        quarantine.put(settings, SPILLS.name, iter([bad("a", 1)]), ["a"])
        quarantine.put(settings, SPILLS.name, iter([bad("b", 2)]), ["b"])
        assert shown(settings).rows() == [("a", 1)]
        land(settings, "b")
        assert shown(settings).rows() == [("a", 1), ("b", 2)]

    def test_putting_a_source_in_again_takes_the_place_of_what_was_left(self, tmp_path):
        settings = settings_in(tmp_path)
        quarantine.put(settings, SPILLS.name, iter([bad("a", 1), bad("a", 2)]), ["a"])
        quarantine.put(settings, SPILLS.name, iter([bad("a", 3)]), ["a"])
        land(settings, "a")
        assert shown(settings).rows() == [("a", 3)]
        quarantine.put(settings, SPILLS.name, iter([]), ["a"])
        assert shown(settings).rows() == []

    def test_a_table_without_bad_rows_has_an_empty_quarantine(self, tmp_path):
        settings = settings_in(tmp_path)
        with pytest.raises(NotFoundError):
            quarantine.read(settings, SPILLS.name)
        land(settings, "a")
        assert shown(settings).is_empty()
