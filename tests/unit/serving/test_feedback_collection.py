import os
import signal
from pathlib import Path

import pytest

from feedback import about, kept, post, registered
from forks import forks
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.data.events.push_log import PushLog
from penstock.errors import BusyError
from penstock.locks import exclusive
from penstock.serving import feedback_collection
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.feedback_collection import collect_feedback
from penstock.settings import Settings

IDS = [f"a-{n}" for n in range(5)]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return registered(tmp_path)


def send(settings: Settings, *prediction_ids: str) -> None:
    for each in prediction_ids:
        assert post(FeedbackIntake(settings), about(each))[0].status == 202


def ids(settings: Settings) -> list[str]:
    return sorted(row["prediction_id"] for row in kept(settings))


def test_without_feedback_there_is_no_table(settings: Settings):
    assert collect_feedback(settings, USE_CASE) == 0
    assert not tables.exists(settings, f"{USE_CASE}.feedback")


def test_much_of_it_comes_in_parts_and_leaves_the_log(settings: Settings, monkeypatch):
    monkeypatch.setattr(feedback_collection, "_EVENTS_PER_COMMIT", 2)
    send(settings, *IDS)
    assert collect_feedback(settings, USE_CASE) == 5
    assert ids(settings) == IDS
    head = PushLog.of(settings).head(f"{USE_CASE}.feedback")
    assert (head.first_sequence, head.next_sequence) == (5, 5)


def test_where_more_always_comes_it_ends_all_the_same(settings: Settings, monkeypatch):
    monkeypatch.setattr(feedback_collection, "_EVENTS_PER_COMMIT", 2)
    send(settings, *IDS)
    later: list[str] = []

    def more_comes(*_: object) -> None:
        later.append(f"b-{len(later)}")
        send(settings, later[-1])
        assert len(later) < 20

    assert collect_feedback(settings, USE_CASE, more_comes) == 6
    assert collect_feedback(settings, USE_CASE) == 2
    assert ids(settings) == sorted([*IDS, *later])


def test_a_log_that_was_lost_and_made_anew_is_no_old_one(settings: Settings):
    send(settings, *IDS[:3])
    collect_feedback(settings, USE_CASE)
    for file in settings.storage_path.glob("pushed_events.db*"):
        file.unlink()
    send(settings, *IDS[3:])
    assert collect_feedback(settings, USE_CASE) == 2
    assert ids(settings) == IDS


def test_two_at_once_take_turns(settings: Settings, monkeypatch):
    monkeypatch.setattr(feedback_collection, "_WAIT_FOR_LOCK_S", 0.05)
    lock = settings.storage_path / "locks" / f"collect-{USE_CASE}.feedback"
    with exclusive(lock, what="x"), pytest.raises(BusyError):
        collect_feedback(settings, USE_CASE)


def _collect_and_die(storage: Path, where: str) -> None:
    """Collect, and die by SIGKILL before the commit, or between it and the trimming of the log."""

    def die(*_: object, **__: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    if where == "before the commit":
        tables.commit = die
    else:
        PushLog.trim = die
    collect_feedback(settings_in(storage), USE_CASE)


def kill_a_collection(settings: Settings, where: str) -> None:
    process = forks.Process(target=_collect_and_die, args=(settings.storage_path, where))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


class TestKilled:
    @pytest.mark.parametrize("where", ["before the commit", "before the trimming"])
    def test_the_next_one_has_each_row_once(self, settings: Settings, where: str):
        send(settings, *IDS[:3])
        kill_a_collection(settings, where)
        send(settings, *IDS[3:])
        collect_feedback(settings, USE_CASE)
        assert ids(settings) == IDS

    def test_without_the_transaction_rows_would_come_twice(self, settings: Settings, monkeypatch):
        send(settings, *IDS)
        kill_a_collection(settings, "before the trimming")
        monkeypatch.setattr(tables.TableFolder, "transaction_number", lambda *_: None)
        original = tables.commit

        def unguarded(*args, transactions, **options):
            return original(*args, **options)

        monkeypatch.setattr(tables, "commit", unguarded)
        collect_feedback(settings, USE_CASE)
        assert ids(settings) == sorted(IDS * 2)
