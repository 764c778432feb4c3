import os
import signal
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from feedback import AS_OF, MODEL, kept, registered
from forks import forks
from payments import USE_CASE, settings_in
from penstock.data import quarantine, tables
from penstock.data.ingest import SourceReport
from penstock.data.source_kinds import FileSource
from penstock.errors import DataError, UserError
from penstock.serving.feedback_files import FeedbackColumns, ingest_file
from penstock.serving.feedback_target import find_target
from penstock.settings import Settings

TABLE = f"{USE_CASE}.feedback"
BY_ENTITY = {"entity": ("CUSTOMER_ID", "CITY"), "event_time": "TX_DATETIME", "truth": "TX_FRAUD"}
SUFFIXES = ("csv", "jsonl", "parquet")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return registered(tmp_path)


def written(folder: Path, rows: pl.DataFrame, suffix: str = "parquet") -> Path:
    path = folder / f"truths.{suffix}"
    text = rows.with_columns(pl.col(pl.Datetime).dt.to_string("%Y-%m-%dT%H:%M:%SZ"))
    if suffix == "csv":
        text.write_csv(path)
    elif suffix == "jsonl":
        text.write_ndjson(path)
    else:
        rows.write_parquet(path)
    return path


def ingest(settings: Settings, path: Path, **columns: Any) -> SourceReport:
    target = find_target(settings, MODEL)
    return ingest_file(settings, target, FileSource(path=path), FeedbackColumns(**columns))


def by_id(*truths: int | str) -> pl.DataFrame:
    ids = [f"a-{n}" for n in range(len(truths))]
    return pl.DataFrame({"prediction_id": ids, "truth": truths})


def counts(report: SourceReport) -> tuple[int, int, int]:
    return report.num_read, report.num_kept, report.num_quarantined


class TestTaken:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_by_prediction_id(self, settings, tmp_path, suffix):
        report = ingest(settings, written(tmp_path, by_id(1, 0), suffix))
        assert (report.status, *counts(report)) == ("ingested", 2, 2, 0)
        first, second = kept(settings)
        assert (first["prediction_id"], first["truth"], second["truth"]) == ("a-0", 1.0, 0.0)
        assert first["known_at"] == first["received_at"]
        assert first["source"] == f"truths.{suffix}"
        assert first["entity"] is first["event_time"] is None

    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_by_entity_and_time_as_over_http(self, settings, tmp_path, suffix):
        known = AS_OF + timedelta(days=2)
        rows = pl.DataFrame(
            {
                "CUSTOMER_ID": [42],
                "CITY": ['K"ö'],
                "TX_DATETIME": [AS_OF],
                "TX_FRAUD": [1],
                "known": [known],
                "more": ["x"],
            }
        )
        report = ingest(settings, written(tmp_path, rows, suffix), **BY_ENTITY, known_at="known")
        assert report.num_kept == 1
        [row] = kept(settings)
        del row["received_at"]
        assert row == {
            "prediction_id": None,
            "entity": '{"CITY":"K\\"ö","CUSTOMER_ID":42}',
            "entity_names": '["CITY","CUSTOMER_ID"]',
            "event_time": AS_OF,
            "truth": 1.0,
            "known_at": known,
            "source": f"truths.{suffix}",
        }

    def test_the_same_bytes_land_once_and_by_other_columns_once_more(self, settings, tmp_path):
        rows = by_id(1, 0).with_columns(after_90_days=pl.lit(1, dtype=pl.Int64))
        path = written(tmp_path, rows)
        assert ingest(settings, path).status == "ingested"
        again = ingest(settings, path.rename(tmp_path / "other.parquet"))
        assert (again.status, *counts(again)) == ("already", 0, 0, 0)
        later = ingest(settings, tmp_path / "other.parquet", truth="after_90_days")
        assert later.status == "ingested"
        assert len(kept(settings)) == 4


class TestBadRows:
    def test_they_go_to_quarantine_and_the_counts_add_up(self, settings, tmp_path):
        future = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
        path = tmp_path / "truths.csv"
        path.write_text(
            "prediction_id,truth,known\n"
            "a-0,1,2024-05-02\n"
            "a-1,7,2024-05-02\n"
            "a-2,maybe,2024-05-02\n"
            f"a-3,1,{future}\n"
            ",1,2024-05-02\n"
            "a-5,,2024-05-02\n"
        )
        report = ingest(settings, path, known_at="known")
        assert counts(report) == (6, 1, 5)
        assert sum(report.broken_rules.values()) == 5
        bad = quarantine.read(settings, TABLE).sort("row").collect()
        assert bad["row"].to_list() == [1, 2, 3, 4, 5]
        assert bad["column"].to_list() == ["truth", "truth", "known", "prediction_id", "truth"]
        assert bad["rule"][1] == "type"
        assert [row["prediction_id"] for row in kept(settings)] == ["a-0"]

    def test_a_file_of_bad_rows_alone_is_ingested_too(self, settings, tmp_path):
        report = ingest(settings, written(tmp_path, by_id(2, 3)))
        assert (report.status, *counts(report)) == ("ingested", 2, 0, 2)
        assert ingest(settings, tmp_path / "truths.parquet").status == "already"


class TestRefused:
    @pytest.mark.parametrize(
        ("rows", "message"),
        [
            (pl.DataFrame({"prediction_id": ["a-0"]}), "lacks the columns truth"),
            (pl.DataFrame({"prediction_id": ["a-0"], "truth": [1.0]}), "truth as Float64"),
        ],
    )
    def test_a_file_of_other_columns_or_types(self, settings, tmp_path, rows, message):
        with pytest.raises(DataError, match=message):
            ingest(settings, written(tmp_path, rows))
        assert not tables.exists(settings, TABLE)

    def test_a_column_without_any_value_of_its_type(self, settings, tmp_path):
        with pytest.raises(DataError, match="none of the 2 values in column truth"):
            ingest(settings, written(tmp_path, by_id("yes", "no"), "csv"))
        assert not tables.exists(settings, TABLE)

    @pytest.mark.parametrize(
        ("columns", "message"),
        [
            ({"entity": ("TX_AMOUNT",)}, "TX_AMOUNT names no entity"),
            ({"truth": "prediction_id"}, "stands for two things"),
            ({"entity": ("CITY", "CITY")}, "stands for two things"),
        ],
    )
    def test_columns_that_cannot_be_meant(self, settings, tmp_path, columns, message):
        with pytest.raises(UserError, match=message):
            ingest(settings, written(tmp_path, by_id(1)), **columns)


def _ingest_and_die(storage: Path, path: Path, where: str) -> None:
    """Ingest, and die by SIGKILL between the quarantine and the commit, or behind the commit."""
    commit = tables.TableFolder.commit

    def die(folder: tables.TableFolder, *args: Any, **options: Any) -> None:
        if folder.name == TABLE:
            if where == "behind the commit":
                commit(folder, *args, **options)
            os.kill(os.getpid(), signal.SIGKILL)
        return commit(folder, *args, **options)

    tables.TableFolder.commit = die
    ingest(settings_in(storage), path)


class TestKilled:
    @pytest.mark.parametrize("where", ["before the commit", "behind the commit"])
    def test_the_next_ingest_leaves_each_row_once(self, settings, tmp_path, where):
        path = written(tmp_path, by_id(1, 7, 0))
        process = forks.Process(target=_ingest_and_die, args=(tmp_path, path, where))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        has_landed = where == "behind the commit"
        assert ingest(settings, path).status == ("already" if has_landed else "ingested")
        assert [row["prediction_id"] for row in kept(settings)] == ["a-0", "a-2"]
        assert quarantine.read(settings, TABLE).collect().height == 1
