import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from penstock.data.events import push_log
from penstock.data.events.push_log import Full, Pushed, PushLog
from penstock.errors import PenstockError, SettingsError

TABLE = "shop.orders"


def pushed(*events: bytes, digest: bytes = b"", table: str = TABLE) -> Pushed:
    return Pushed(table, events, digest or b"|".join(events))


class LogBehaviour:
    """What the log must do on every database; needs the fixture `make`."""

    def test_numbers_rise_without_a_gap_and_events_come_back_in_order(self, make):
        log = make()
        assert log.append([pushed(b"a", b"b"), pushed(b"c")]) == [1, 2]
        assert log.append([pushed(b"d")]) == [3]
        assert log.read(TABLE, 0, 10) == [(0, b"a"), (1, b"b"), (2, b"c"), (3, b"d")]

    def test_reading_starts_in_the_middle_of_a_body(self, make):
        log = make()
        log.append([pushed(b"a", b"b", b"c"), pushed(b"d")])
        assert log.read(TABLE, 1, 10) == [(1, b"b"), (2, b"c"), (3, b"d")]
        assert log.read(TABLE, 4, 10) == []

    def test_a_body_that_comes_again_is_answered_as_before_and_kept_once(self, make):
        log = make()
        assert log.append([pushed(b"a"), pushed(b"b"), pushed(b"a")]) == [0, 1, 0]
        assert log.append([pushed(b"a")]) == [0]
        assert [value for _, value in log.read(TABLE, 0, 10)] == [b"a", b"b"]

    def test_it_is_known_again_after_the_table_has_it(self, make):
        log = make()
        log.append([pushed(b"a")])
        log.trim(TABLE, 1)
        assert log.append([pushed(b"a")]) == [0]
        assert log.read(TABLE, 0, 10) == []

    def test_old_digests_are_forgotten_once_the_table_has_their_events(self, make, monkeypatch):
        log = make()
        log.append([pushed(b"a"), pushed(b"b")])
        monkeypatch.setattr(push_log, "_DIGEST_LIFE_S", -1.0)
        log.trim(TABLE, 1)
        assert log.append([pushed(b"b"), pushed(b"a")]) == [1, 2]

    def test_so_are_those_of_many_events_ago(self, make, monkeypatch):
        log = make()
        monkeypatch.setattr(push_log, "_DIGEST_LIFE_EVENTS", 1)
        log.append([pushed(b"a"), pushed(b"b")])
        log.trim(TABLE, 2)
        assert log.append([pushed(b"b"), pushed(b"a")]) == [1, 2]

    def test_tables_have_logs_of_their_own(self, make):
        log = make()
        assert log.append([pushed(b"a"), pushed(b"x", table="shop.visits")]) == [0, 0]
        assert log.read("shop.visits", 0, 10) == [(0, b"x")]

    def test_what_the_table_has_is_forgotten_and_numbers_go_on(self, make):
        log = make()
        log.append([pushed(b"a", b"b"), pushed(b"c")])
        log.trim(TABLE, 1)
        # A body that the table has in part is still needed.
        assert log.read(TABLE, 0, 10) == [(0, b"a"), (1, b"b"), (2, b"c")]
        log.trim(TABLE, 3)
        assert log.read(TABLE, 0, 10) == []
        assert log.append([pushed(b"d")]) == [3]
        assert log.head(TABLE)[1:] == (3, 4)

    def test_a_full_log_takes_nothing_until_the_table_has_some(self, make):
        log = make(max_waiting_events=3)
        assert log.append([pushed(b"a", b"b"), pushed(b"c", b"d"), pushed(b"e")]) == [1, Full(2), 2]
        assert log.append([pushed(b"f")]) == [Full(3)]
        # What was taken is answered as before, full or not.
        assert log.append([pushed(b"e")]) == [2]
        log.trim(TABLE, 3)
        assert log.append([pushed(b"f")]) == [3]

    def test_bytes_that_wait_have_a_bound_too(self, make):
        log = make(max_waiting_bytes=10)
        assert log.append([pushed(b"x" * 40)]) == [0]
        assert log.append([pushed(b"y")]) == [Full(1)]
        log.trim(TABLE, 1)
        assert log.append([pushed(b"y")]) == [1]

    def test_writers_at_once_leave_no_gap_and_nothing_out_of_order(self, make):
        log, reader = make(), make()
        seen: list[int] = []
        writers = [
            threading.Thread(
                target=lambda n=n: [log.append([pushed(b"%d-%d" % (n, i))]) for i in range(25)]
            )
            for n in range(4)
        ]
        for writer in writers:
            writer.start()
        while len(seen) < 100:
            found = [number for number, _ in reader.read(TABLE, len(seen), 1000)]
            # A number that becomes visible after a higher one would be passed over for good.
            assert found == list(range(len(seen), len(seen) + len(found)))
            seen += found
        for writer in writers:
            writer.join()
        log.close()
        reader.close()


@pytest.fixture
def make_url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path / 'folder' / 'log.db'}"


@pytest.fixture
def make(make_url: str) -> Callable[..., PushLog]:
    return lambda **limits: PushLog(make_url, **limits)


class TestSqlite(LogBehaviour):
    """In a file of its own."""

    def test_it_outlives_its_writer(self, make):
        make().append([pushed(b"a")])
        assert make().read(TABLE, 0, 10) == [(0, b"a")]

    def test_its_files_are_for_their_owner_only(self, make, tmp_path: Path):
        make().append([pushed(b"a")])
        files = list((tmp_path / "folder").iterdir())
        assert {file.stat().st_mode & 0o777 for file in files} == {0o600}

    def test_what_was_answered_is_on_disk(self, make):
        with make()._database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar() == "wal"

    def test_many_large_bodies_are_read_in_parts(self, make):
        log = make()
        log.append([pushed(*(b"%d-%d" % (n, i) for i in range(50))) for n in range(100)])
        found = log.read(TABLE, 10, 100)
        assert [number for number, _ in found] == list(range(10, 150))

    @hypothesis_settings(max_examples=15, deadline=None)
    @given(
        bodies=st.lists(st.lists(st.integers(0, 5), min_size=1, max_size=4), max_size=8),
        trims=st.lists(st.integers(0, 12), max_size=3),
    )
    def test_whatever_is_pushed_and_forgotten_each_event_has_its_one_number(
        self, tmp_path_factory, bodies, trims
    ):
        log = PushLog(f"sqlite:///{tmp_path_factory.mktemp('log')}/log.db")
        expected: list[bytes] = []
        known: dict[bytes, int] = {}
        for body in bodies:
            values = [b"%d" % value for value in body]
            [last] = log.append([pushed(*values)])
            if b"|".join(values) not in known:
                expected += values
                known[b"|".join(values)] = len(expected) - 1
            assert last == known[b"|".join(values)]
        for position in trims:
            log.trim(TABLE, position)
        found = dict(log.read(TABLE, 0, 1000))
        for number, value in found.items():
            assert expected[number] == value
        assert set(found) >= set(range(max(trims, default=0), len(expected)))
        log.close()


@pytest.mark.servers
class TestPostgres(LogBehaviour):
    """On the server of Feast's registry."""

    @pytest.fixture
    def make(self, postgres, request) -> Iterator[Callable[..., PushLog]]:
        url = postgres.create(f"push_{abs(hash(request.node.name))}")
        logs: list[PushLog] = []

        def make(**limits: int) -> PushLog:
            logs.append(PushLog(url, **limits))
            return logs[-1]

        yield make
        for log in logs:
            log.close()

    def test_a_server_that_is_gone_is_told_without_the_password(self):
        with pytest.raises(PenstockError, match="does not answer") as told:
            PushLog("postgresql+psycopg://u:hush@127.0.0.1:9/db")
        assert "hush" not in str(told.value)


def test_another_kind_of_database_is_refused():
    with pytest.raises(SettingsError, match="sqlite or postgresql"):
        PushLog("mysql://u:p@h/db")
