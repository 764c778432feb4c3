from pathlib import Path

import pytest

from penstock.data.events.push_log import Pushed, PushLog
from penstock.data.events.pushes import PushSource
from penstock.errors import DataError

TABLE = "shop.orders"


@pytest.fixture
def log(tmp_path: Path) -> PushLog:
    return PushLog(f"sqlite:///{tmp_path}/log.db")


def push(log: PushLog, *events: bytes) -> None:
    log.append([Pushed(TABLE, events, b"".join(events))])


def opened(log: PushLog, positions: dict[str, int] | None = None) -> PushSource:
    source = PushSource(log, TABLE)
    source.open(positions or {}, lambda: None)
    return source


class TestPushSource:
    def test_events_come_in_order_in_parts_of_the_asked_size(self, log: PushLog):
        push(log, b"a", b"b", b"c")
        push(log, b"d")
        source = opened(log)
        first, second = source.poll(3, 0), source.poll(3, 0)
        assert [event.value for event in first] == [b"a", b"b", b"c"]
        assert [(event.offset, event.next_offset) for event in second] == [(3, 4)]
        assert source.poll(3, 0) == []

    def test_it_starts_behind_what_the_table_has(self, log: PushLog):
        push(log, b"a", b"b")
        [first, _] = opened(log).poll(10, 0)
        [event] = opened(log, {first.partition: first.next_offset}).poll(10, 0)
        assert event.value == b"b"

    def test_what_is_committed_is_forgotten(self, log: PushLog):
        push(log, b"a")
        source = opened(log)
        [event] = source.poll(10, 0)
        source.commit({event.partition: event.next_offset, "kafka:x/y/0": 99})
        assert log.head(TABLE).first_sequence == 1

    def test_lag_is_what_was_not_given_yet(self, log: PushLog):
        push(log, b"a", b"b", b"c")
        source = opened(log)
        assert source.lag() == 3
        source.poll(1, 0)
        assert source.lag() == 2

    def test_a_log_begun_anew_is_read_from_its_begin(self, log: PushLog, tmp_path: Path):
        push(log, b"a", b"b")
        position = opened(log).poll(10, 0)[-1]
        anew = PushLog(f"sqlite:///{tmp_path}/anew.db")
        push(anew, b"c")
        source = opened(anew, {position.partition: position.next_offset})
        assert [event.value for event in source.poll(10, 0)] == [b"c"]

    def test_an_older_copy_of_the_log_is_refused(self, log: PushLog):
        push(log, b"a")
        [event] = opened(log).poll(10, 0)
        with pytest.raises(DataError, match="ends at 1, and the table has them up to 7"):
            opened(log, {event.partition: 7})

    def test_a_database_that_fails_is_tried_again(self, log: PushLog, tmp_path: Path):
        source = opened(log)
        log.close()
        (tmp_path / "log.db").rename(tmp_path / "away.db")
        (tmp_path / "log.db").mkdir()
        assert source.poll(10, 0.05) == []
        (tmp_path / "log.db").rmdir()
        (tmp_path / "away.db").rename(tmp_path / "log.db")
        push(log, b"a")
        assert [event.value for event in source.poll(10, 1)] == [b"a"]
