import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from penstock.data.events import MAX_EVENT_BYTES, JsonLinesTail, file_tail
from penstock.data.events.file_tail import FileTail
from penstock.errors import DataError


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "payments.jsonl"


tails: list[FileTail] = []


@pytest.fixture(autouse=True)
def _short_last_words_and_closed_files(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(file_tail, "_LAST_WORDS_S", 0.05)
    yield
    while tails:
        tails.pop().close()


def opened(path: Path, positions: dict[str, int] | None = None) -> FileTail:
    tail = FileTail(JsonLinesTail(path=path))
    tails.append(tail)
    tail.open(positions or {}, lambda: None)
    return tail


def append(path: Path, text: bytes) -> None:
    with path.open("ab") as file:
        file.write(text)


class Reader:
    """Reads as a stream does: what it was given it has in its table."""

    def __init__(self, path: Path):
        self.path = path
        self.positions: dict[str, int] = {}
        self.values: list[bytes] = []
        self.tail = opened(path)

    def read(self, wait_s: float = 0.2, max_events: int = 100) -> list[bytes]:
        got: list[bytes] = []
        while events := self.tail.poll(max_events, wait_s):
            for event in events:
                assert event.offset < event.next_offset
                self.positions[event.partition] = event.next_offset
                got.append(event.value.rstrip(b"\n"))
        self.values += got
        return got

    def restart(self) -> None:
        self.tail.close()
        self.tail = opened(self.path, self.positions)


class TestAppends:
    def test_only_whole_lines_are_given(self, path: Path):
        append(path, b'{"a":1}\n{"a"')
        tail = opened(path)
        [event] = tail.poll(10, 0)
        assert (event.value, event.offset, event.next_offset) == (b'{"a":1}\n', 0, 8)
        assert tail.lag() is None
        append(path, b":2}\n")
        [event] = tail.poll(10, 0)
        assert (event.value, event.offset) == (b'{"a":2}\n', 8)
        assert tail.lag() == 0

    def test_a_file_that_is_not_there_yet_is_waited_for(self, path: Path):
        reader = Reader(path)
        assert reader.read(0.0) == []
        append(path, b"1\n")
        assert reader.read(0.0) == [b"1"]

    def test_blank_lines_are_no_events(self, path: Path):
        append(path, b"\n1\n\n \n2\n")
        assert Reader(path).read(0.0) == [b"1", b"2"]

    def test_of_a_line_too_long_the_begin_is_given_and_the_rest_passed_over(self, path: Path):
        append(path, b"x" * (MAX_EVENT_BYTES + 2_000_000) + b"\n1\n")
        long, short = opened(path).poll(10, 0)
        assert long.value == b"x" * MAX_EVENT_BYTES
        assert short.value == b"1\n"

    def test_a_restart_goes_on_where_it_was(self, path: Path):
        append(path, b"1\n2\n3\n")
        reader = Reader(path)
        [event] = reader.tail.poll(1, 0)
        reader.positions = {event.partition: event.next_offset, "push:x#y": 7}
        reader.restart()
        append(path, b"4\n")
        assert reader.read(0.0) == [b"2", b"3", b"4"]

    @hypothesis_settings(max_examples=40, deadline=None)
    @given(
        pieces=st.lists(st.sampled_from([b"1", b"22", b"\n", b"3\n4\n", b"\r\n"]), max_size=12),
        max_events=st.integers(1, 4),
        restarts=st.sets(st.integers(0, 12)),
    )
    def test_however_lines_arrive_each_is_given_once_and_in_order(
        self, tmp_path_factory, pieces, max_events, restarts
    ):
        path = tmp_path_factory.mktemp("tail") / "x.jsonl"
        reader = Reader(path)
        for place, piece in enumerate(pieces):
            append(path, piece)
            reader.read(0.0, max_events)
            if place in restarts:
                reader.restart()
        append(path, b"\n")
        reader.read(0.0, max_events)
        whole = b"".join(pieces) + b"\n"
        assert [v.strip() for v in reader.values] == whole.split()


class TestRotations:
    def test_a_renamed_file_is_read_to_its_end_before_the_new_one(self, path: Path):
        append(path, b"1\n")
        reader = Reader(path)
        reader.read(0.0)
        with path.open("ab") as writer:
            path.rename(f"{path}.1")
            append(path, b"3\n")
            # The writer has the old file open still.
            writer.write(b"2\n")
        assert reader.read() == [b"2", b"3"]

    def test_a_last_line_without_an_end_counts_when_the_next_file_was_begun(self, path: Path):
        append(path, b"1\n2")
        reader = Reader(path)
        assert reader.read(0.0) == [b"1"]
        path.rename(f"{path}.1")
        append(path, b"3\n")
        assert reader.read() == [b"2", b"3"]

    def test_what_was_rotated_while_nobody_read_is_found(self, path: Path):
        append(path, b"1\n")
        reader = Reader(path)
        reader.read(0.0)
        append(path, b"2\n")
        os.utime(path, (1_000, 1_000))
        path.rename(f"{path}.3")
        for name, at_s in ((b"3", 2_000), (b"4", 3_000)):
            append(path, name + b"\n")
            os.utime(path, (at_s, at_s))
            path.rename(f"{path}.{3 - at_s // 1_000}")
        append(path, b"5\n")
        # Of another log: its name begins like ours, and yet it is none of our rotations.
        append(path.with_name("payments_eu.jsonl"), b"9\n")
        append(path.with_name("payments.jsonl.4.gz"), b"9\n")
        reader.restart()
        assert reader.read() == [b"2", b"3", b"4", b"5"]
        reader.restart()
        assert reader.read() == []

    def test_an_old_file_may_go_once_it_was_read(self, path: Path):
        append(path, b"1\n")
        reader = Reader(path)
        reader.read(0.0)
        path.rename(f"{path}.1")
        append(path, b"2\n")
        assert reader.read() == [b"2"]
        Path(f"{path}.1").unlink()
        reader.restart()
        append(path, b"3\n")
        assert reader.read(0.0) == [b"3"]

    def test_a_file_that_is_gone_unread_is_an_error(self, path: Path):
        append(path, b"1\n2\n")
        reader = Reader(path)
        [event] = reader.tail.poll(1, 0)
        reader.positions[event.partition] = event.next_offset
        path.unlink()
        append(path, b"9\n")
        with pytest.raises(DataError, match=r"up to byte 2, is gone.*payments\.jsonl\.1"):
            reader.restart()


class TestCuts:
    def test_a_cut_file_is_an_error(self, path: Path):
        append(path, b"1\n2\n")
        reader = Reader(path)
        reader.read(0.0)
        path.write_bytes(b"1\n")
        with pytest.raises(DataError, match="was cut or written anew after 4 bytes"):
            reader.read(0.0)

    def test_a_file_written_anew_and_longer_is_an_error_too(self, path: Path):
        append(path, b"1\n")
        reader = Reader(path)
        reader.read(0.0)
        path.write_bytes(b"7\n8\n9\n")
        with pytest.raises(DataError, match="written anew"):
            reader.read(0.0)
