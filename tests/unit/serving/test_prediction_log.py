import stat
import threading
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from penstock.serving import prediction_log
from penstock.serving.log_collection import read_segment
from penstock.serving.prediction_log import FINISH, FINISHED, OPEN, SegmentHeader, record_batch
from prediction_logs import AS_OF, HEADER, answered, open_log
from waiting import wait_for


def files(root: Path, suffix: str = FINISHED) -> list[Path]:
    return sorted(root.glob(f"*/*{suffix}"))


def ids(root: Path) -> list[str]:
    found: list[str] = []
    for file in files(root):
        found += read_segment(file).rows["prediction_id"].to_pylist()
    return found


class TestRecordBatch:
    def test_a_row_has_all_that_its_answer_was_made_from(self):
        batch = record_batch([answered("a", 1, served_at_us=7)], HEADER, HEADER.columns())
        (row,) = batch.to_pylist()
        assert np.isnan(row["features"][1])
        assert row.pop("features")[0] == 0
        assert row.pop("served_at").timestamp() == 7e-6
        assert row == {
            "prediction_id": "a0-0",
            "request_id": None,
            "as_of": AS_OF,
            "score": 0.5,
            "given": None,
            "field:rider": 0,
            "field:city": "Köln",
            "field:at": AS_OF.replace(tzinfo=None),
            "field:fare": 0.1,
            "field:is_member": True,
            "event:riders": AS_OF.replace(minute=59, hour=11),
            "event:cities": None,
        }

    def test_many_batches_keep_their_order_and_number_the_rows_of_each_request(self):
        batches = [answered("a", 2, 1), answered("b", 1)]
        found = record_batch(batches, HEADER, HEADER.columns())
        assert found["prediction_id"].to_pylist() == ["a0-0", "a0-1", "a1-0", "b0-0"]
        assert [f[0] for f in found["features"].to_pylist()] == [0, 1, 2, 0]

    def test_a_request_that_was_refused_for_one_of_its_scores_is_left_out(self):
        batches = [answered("a", 1, 2, 1, scores=[0.1, 0.2, np.nan, 0.4])]
        found = record_batch(batches, HEADER, HEADER.columns())
        assert found["prediction_id"].to_pylist() == ["a0-0", "a2-0"]

    def test_its_header_comes_back(self):
        assert SegmentHeader.of(HEADER.columns()) == HEADER


class TestPredictionLog:
    def test_what_was_put_is_in_the_segment_once_it_is_closed(self, tmp_path: Path):
        log = open_log(tmp_path)
        for number in range(50):
            log.put(answered(f"{number}-", 2))
        log.close()
        assert sorted(ids(tmp_path)) == sorted(f"{n}-0-{i}" for n in range(50) for i in range(2))
        assert files(tmp_path, OPEN) == []

    def test_only_the_owner_can_read_it(self, tmp_path: Path):
        log = open_log(tmp_path / "root")
        log.put(answered("a", 1))
        log.close()
        (file,) = files(tmp_path / "root")
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700

    def test_without_predictions_there_is_no_segment(self, tmp_path: Path):
        open_log(tmp_path).close()
        assert files(tmp_path) + files(tmp_path, OPEN) == []

    def test_a_segment_is_finished_when_it_is_large(self, tmp_path: Path):
        log = open_log(tmp_path, segment_bytes=1)
        for number in range(3):
            log.put(answered(f"{number}-", 1))
            wait_for(lambda number=number: len(files(tmp_path)) == number + 1)
        log.close()
        assert ids(tmp_path) == ["0-0-0", "1-0-0", "2-0-0"]

    def test_a_segment_is_finished_when_it_is_old_though_nothing_comes(self, tmp_path: Path):
        log = open_log(tmp_path, segment_s=0.05)
        log.put(answered("a", 1))
        wait_for(lambda: len(files(tmp_path)) == 1)
        log.close()

    def test_who_asks_finds_all_that_was_put_before(self, tmp_path: Path):
        log = open_log(tmp_path, interval_s=0.05)
        for number in range(5):
            log.put(answered(f"{number}-", 1))
            (folder,) = [f for f in tmp_path.iterdir() if f.is_dir()]
            request = folder / f"{FINISH}{number}"
            request.touch()
            wait_for(lambda request=request: not request.exists())
            assert f"{number}-0-0" in ids(tmp_path)
        log.close()

    def test_what_the_disk_cannot_take_in_time_is_counted(self, tmp_path: Path, monkeypatch):
        stuck = threading.Event()
        original = prediction_log.record_batch
        monkeypatch.setattr(
            prediction_log, "record_batch", lambda *args: stuck.wait(10) and original(*args)
        )
        log = open_log(tmp_path, max_rows_waiting=10)
        log.put(answered("first", 4))
        wait_for(lambda: not log._waiting)
        log.put(answered("second", 6))
        log.put(answered("third", 3))
        stuck.set()
        wait_for(lambda: log._num_waiting == 0)
        assert log.take_num_dropped() == 3
        assert log.take_num_dropped() == 0
        log.put(answered("fourth", 1))
        log.close()
        assert len(ids(tmp_path)) == 11

    def test_a_full_disk_costs_rows_that_are_counted_and_no_answer(
        self, tmp_path: Path, monkeypatch
    ):
        log = open_log(tmp_path)
        log.put(answered("before", 2))
        wait_for(lambda: log._num_waiting == 0)

        def full(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patched:
            patched.setattr(prediction_log.os, "fsync", full)
            log.put(answered("lost", 3))
            wait_for(lambda: log._num_waiting == 0)
        assert log.take_num_dropped() == 3
        log.put(answered("after", 1))
        log.close()
        assert {"before0-0", "before0-1", "after0-0"} <= set(ids(tmp_path))

    def test_beyond_its_share_of_the_disk_it_writes_nothing_and_counts(self, tmp_path: Path):
        log = open_log(tmp_path, segment_bytes=1, max_bytes=1)
        log.put(answered("a", 1))
        wait_for(lambda: len(files(tmp_path)) == 1)
        log.put(answered("b", 2))
        wait_for(lambda: log._num_waiting == 0)
        assert log.take_num_dropped() == 2
        files(tmp_path)[0].unlink()
        log.put(answered("c", 1))
        log.close()
        assert ids(tmp_path) == ["c0-0"]


class TestATornEnd:
    def test_at_every_byte_the_whole_batches_before_it_are_read(self, tmp_path: Path):
        whole = tmp_path / "whole"
        ends = []
        with whole.open("wb") as out, pa.ipc.new_stream(out, HEADER.columns()) as writer:
            for name in "abc":
                writer.write_batch(record_batch([answered(name, 1)], HEADER, HEADER.columns()))
                ends.append(out.tell())
        content = whole.read_bytes()
        torn = tmp_path / "torn"
        for length in range(0, len(content), 29):
            torn.write_bytes(content[:length])
            found = read_segment(torn).rows
            wanted = ["a0-0", "b0-0", "c0-0"][: sum(end <= length for end in ends)]
            assert (found["prediction_id"].to_pylist() if found.num_columns else []) == wanted

    def test_a_file_of_something_else_is_refused_or_empty(self, tmp_path: Path):
        file = tmp_path / "x"
        file.write_bytes(b"nonsense" * 100)
        found = read_segment(file)
        assert found.header is None
        assert found.is_torn


@pytest.mark.parametrize("size", [1, 300])
def test_a_put_does_no_work_on_the_callers_side(tmp_path: Path, size: int):
    log = open_log(tmp_path, interval_s=60)
    batch = answered("a", *[1] * size)
    log.put(batch)
    assert log._waiting == [batch]
    log.close()
