import dataclasses
import os
import signal
from pathlib import Path

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pytest

from forks import forks
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.errors import BusyError, DeclarationError, IntegrityError
from penstock.locks import exclusive
from penstock.serving import log_collection
from penstock.serving.log_collection import collect, predictions_table, shadow_table, to_frame
from penstock.serving.prediction_log import PredictionLog, log_folder, record_batch
from penstock.settings import Settings
from prediction_logs import AS_OF, HEADER, answered, killed_log, open_log

TABLE = predictions_table(USE_CASE)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


def write(settings: Settings, *names: str) -> None:
    log = open_log(log_folder(settings, USE_CASE))
    for name in names:
        log.put(answered(name, 2))
    log.close()


def write_shadow(settings: Settings, name: str) -> None:
    header = HEADER.model_copy(update={"is_shadow": True})
    log = PredictionLog(log_folder(settings, USE_CASE), header, max_bytes=1 << 30, interval_s=0.01)
    log.put(answered(name, 2))
    log.close()


def collected(settings: Settings, table: str = TABLE) -> list[str]:
    rows = tables.scan(settings, table).sort("prediction_id").collect()
    return rows["prediction_id"].to_list()


class TestCollect:
    def test_nothing_logged_is_nothing_collected(self, settings: Settings):
        assert collect(settings, USE_CASE).num_predictions == 0
        assert not tables.exists(settings, TABLE)

    def test_a_prediction_is_a_row_with_all_that_it_was_made_from(self, settings: Settings):
        log = open_log(log_folder(settings, USE_CASE))
        log.put(answered("a", 1, km=2.5))
        log.put(answered("b", 1))
        log.close()
        assert collect(settings, USE_CASE).num_predictions == 2
        first, second = tables.scan(settings, TABLE).sort("prediction_id").collect().to_dicts()
        assert first.pop("served_at").tzinfo is not None
        assert orjson.loads(first.pop("request")) == {
            "rider": 0,
            "city": "Köln",
            "at": "2024-05-01T12:00:00.250000Z",
            "fare": 0.1,
            "is_member": True,
        }
        assert first == {
            "prediction_id": "a0-0",
            "request_id": None,
            "model": "spills",
            "model_version": 3,
            "model_digest": "d1",
            "feature_service": "service",
            "as_of": AS_OF,
            "feature_names": '["rides","km"]',
            "features": [0.0, 2.5],
            "views": '["riders","cities"]',
            "view_event_times": [AS_OF.replace(hour=11, minute=59), None],
            "score": 0.5,
        }
        assert second["features"] == [0.0, None]

    def test_features_that_a_request_brought_stand_in_it(self, settings: Settings):
        log = open_log(log_folder(settings, USE_CASE))
        batch = answered("a", 1, 1, km=2.5)
        (looked_up,) = batch.looked_up
        given = dataclasses.replace(looked_up, given={1: {"km": 2.5, "rides": np.nan}})
        log.put(dataclasses.replace(batch, looked_up=[given]))
        log.put(answered("b", 1))
        log.close()
        collect(settings, USE_CASE)
        logged = tables.scan(settings, TABLE).sort("prediction_id").collect()["request"]
        brought = [
            {k: v for k, v in orjson.loads(r).items() if k in ("km", "rides")} for r in logged
        ]
        assert brought == [{}, {"km": 2.5, "rides": None}, {}]

    def test_segments_of_before_requests_could_bring_features(self, settings: Settings):
        batch = record_batch([answered("a", 1)], HEADER, HEADER.columns())
        older = pa.Table.from_batches([batch]).drop_columns("given")
        assert "km" not in orjson.loads(to_frame(HEADER, older)["request"][0])

    def test_again_it_finds_nothing_new(self, settings: Settings):
        write(settings, "a", "b")
        assert collect(settings, USE_CASE).num_predictions == 4
        assert collect(settings, USE_CASE).num_predictions == 0
        write(settings, "c")
        assert collect(settings, USE_CASE).num_predictions == 2
        assert len(collected(settings)) == 6

    def test_a_dead_replicas_folder_goes_and_a_live_ones_stays(self, settings: Settings):
        root = log_folder(settings, USE_CASE)
        write(settings, "dead")
        log = open_log(root)
        log.put(answered("alive", 1))
        found = collect(settings, USE_CASE)
        assert (found.num_predictions, found.num_silent_replicas) == (3, 0)
        assert len([folder for folder in root.iterdir() if folder.is_dir()]) == 1
        log.put(answered("later", 1))
        assert collect(settings, USE_CASE).num_predictions == 1
        log.close()

    def test_a_killed_replica_loses_nothing_that_was_on_the_disk(self, settings: Settings):
        killed_log(log_folder(settings, USE_CASE), num_batches=3)
        found = collect(settings, USE_CASE)
        assert found.num_predictions == 6
        assert collected(settings) == sorted(
            f"killed{batch}-0-{row}" for batch in range(3) for row in range(2)
        )

    def test_models_with_other_fields_and_features_share_the_table(self, settings: Settings):
        write(settings, "a")
        root = log_folder(settings, USE_CASE)
        other = HEADER.model_copy(
            update={"views": (), "fields": HEADER.fields[:1], "feature_names": ("a", "b")}
        )
        log = PredictionLog(root, other, max_bytes=1 << 30, interval_s=0.01)
        log.put(answered("b", 1))
        log.close()
        assert collect(settings, USE_CASE).num_predictions == 3
        assert tables.scan(settings, TABLE).collect()["view_event_times"].list.len().min() == 0

    def test_what_a_shadow_scored_never_stands_among_the_answers(self, settings: Settings):
        write(settings, "answer")
        write_shadow(settings, "shadow")
        collect(settings, USE_CASE)
        assert collected(settings) == ["answer0-0", "answer0-1"]
        assert collected(settings, shadow_table(USE_CASE)) == ["shadow0-0", "shadow0-1"]

    def test_a_shadow_alone_makes_no_table_of_answers(self, settings: Settings):
        write_shadow(settings, "shadow")
        collect(settings, USE_CASE)
        assert not tables.exists(settings, TABLE)

    def test_a_replica_that_does_not_finish_is_told_of_and_waits(
        self, settings: Settings, monkeypatch
    ):
        monkeypatch.setattr(log_collection, "_WAIT_FOR_REPLICAS_S", 0.05)
        log = open_log(log_folder(settings, USE_CASE), interval_s=30)
        log.put(answered("a", 1))
        found = collect(settings, USE_CASE)
        assert (found.num_predictions, found.num_silent_replicas) == (0, 1)
        log.close()
        assert collect(settings, USE_CASE).num_predictions == 1

    @pytest.mark.parametrize("table", [TABLE, shadow_table(USE_CASE)])
    def test_a_table_of_that_name_is_never_mixed_with_the_log(self, settings, monkeypatch, table):
        monkeypatch.setattr(log_collection, "load_tables", lambda *_: {table: None})
        with pytest.raises(DeclarationError, match=f"declares the table {table},"):
            collect(settings, USE_CASE)

    def test_two_at_once_take_turns(self, settings: Settings, monkeypatch):
        monkeypatch.setattr(log_collection, "_WAIT_FOR_LOCK_S", 0.05)
        lock = settings.storage_path / "locks" / f"collect-{USE_CASE}"
        with exclusive(lock, what="x"), pytest.raises(BusyError):
            collect(settings, USE_CASE)

    def test_a_file_that_is_none_of_ours_is_not_taken_for_a_segment(self, settings: Settings):
        folder = log_folder(settings, USE_CASE) / "x"
        folder.mkdir(parents=True)
        schema = pa.schema([("a", pa.int64())])
        with (folder / "000001.arrow").open("wb") as out, pa.ipc.new_stream(out, schema):
            pass
        with pytest.raises(IntegrityError, match="000001"):
            collect(settings, USE_CASE)
        assert (folder / "000001.arrow").exists()


def _collect_and_die(storage: Path, where: str) -> None:
    """Collect, and die by SIGKILL before the commit, or between it and the files' removal."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "before the commit":
        tables.commit = die
    else:
        Path.unlink = die
    collect(settings_in(storage), USE_CASE)


class TestKilledCollection:
    @pytest.mark.parametrize("where", ["before the commit", "before the removal"])
    def test_the_next_run_has_each_prediction_once(self, settings: Settings, where: str):
        write(settings, "a", "b")
        write(settings, "c")
        write_shadow(settings, "s")
        for _ in range(2):
            process = forks.Process(target=_collect_and_die, args=(settings.storage_path, where))
            process.start()
            process.join()
            assert process.exitcode == -signal.SIGKILL
        collect(settings, USE_CASE)
        assert len(collected(settings)) == len(set(collected(settings))) == 6
        assert collected(settings, shadow_table(USE_CASE)) == ["s0-0", "s0-1"]
        assert list(log_folder(settings, USE_CASE).glob("*/*")) == []

    def test_what_a_shadow_scored_is_neither_lost_nor_twice(self, settings: Settings):
        write_shadow(settings, "before")
        process = forks.Process(
            target=_collect_and_die, args=(settings.storage_path, "before the removal")
        )
        process.start()
        process.join()
        write_shadow(settings, "since")
        collect(settings, USE_CASE)
        names = ["before0-0", "before0-1", "since0-0", "since0-1"]
        assert collected(settings, shadow_table(USE_CASE)) == names

    def test_without_the_transactions_predictions_would_come_twice(
        self, settings: Settings, monkeypatch
    ):
        write(settings, "a")
        process = forks.Process(
            target=_collect_and_die, args=(settings.storage_path, "before the removal")
        )
        process.start()
        process.join()
        monkeypatch.setattr(tables.TableFolder, "known_transactions", lambda *_: set())
        original = tables.commit

        def unguarded(*args, transactions, **options):
            return original(*args, **options)

        monkeypatch.setattr(tables, "commit", unguarded)
        collect(settings, USE_CASE)
        assert len(collected(settings)) == 4


def test_the_table_is_split_by_day(settings: Settings):
    write(settings, "a")
    collect(settings, USE_CASE)
    assert tables.folder(settings, TABLE).partition_by() == "day"
    assert tables.scan(settings, TABLE).collect_schema()["features"] == pl.List(pl.Float64)
