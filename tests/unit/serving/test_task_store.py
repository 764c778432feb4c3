import itertools
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from cases import some_slow
from penstock.errors import PenstockError
from penstock.serving.task_policy import BeginAgain, Fail, Keep, Wait
from penstock.serving.task_store import TaskStore
from penstock.serving.task_tables import Full, NewTask

MODEL = "spills"


def new(task_id: str, *chunks: bytes, deadline_s: float = 1e9, **changes) -> NewTask:
    made = {
        "model": MODEL,
        "task_id": task_id,
        "asked_version": None,
        "num_rows": 2 * len(chunks),
        "rows_per_chunk": 2,
        "chunks": chunks,
        "created_at_s": 0.0,
        "deadline_s": deadline_s,
    }
    return NewTask(**{**made, **changes})


def take(store: TaskStore, *, now_s: float = 1.0, max_chunks: int = 2, **how_):
    return store.take_turn(MODEL, now_s=now_s, max_chunks=max_chunks, **how_)


def settle(store: TaskStore, turn, outcome=None, *, answers=(), version=1, now_s: float = 1.0):
    store.settle([(turn, version, answers, outcome or Keep())], now_s=now_s)


class StoreBehaviour:
    """What the store must do on every database; needs the fixture `make`."""

    def test_a_task_is_given_out_in_chunks_and_its_answers_come_back_in_order(self, make):
        store = make()
        assert store.accept(new("t", b"a", b"b", b"c", num_rows=5)).status == "queued"
        turn = take(store)
        assert (turn.first, turn.bodies, turn.version) == (0, [b"a", b"b"], None)
        settle(store, turn, answers=[b"A", b"B"], version=4)
        assert store.find(MODEL, "t").num_rows_done == 4
        turn = take(store)
        assert (turn.first, turn.bodies, turn.version) == (2, [b"c"], 4)
        settle(store, turn, answers=[b"C"], version=4)
        state = store.find(MODEL, "t")
        assert (state.status, state.version, state.num_rows_done) == ("done", 4, 5)
        assert store.answers(MODEL, "t") == [b"A", b"B", b"C"]
        assert take(store) is None

    def test_what_was_given_out_and_never_settled_is_given_out_again(self, make):
        make().accept(new("t", b"a"))
        assert take(make()).num_attempts == 1
        again = take(make())
        assert (again.bodies, again.num_attempts) == ([b"a"], 2)

    def test_a_task_is_taken_once_whatever_became_of_it(self, make):
        store = make()
        store.accept(new("t", b"a"))
        settle(store, take(store), answers=[b"A"])
        assert store.accept(new("t", b"a")).status == "done"
        assert take(store) is None

    def test_answers_that_come_twice_are_kept_once(self, make):
        store = make()
        store.accept(new("t", b"a", b"b"))
        slow, quick = take(store, max_chunks=1), take(store)
        settle(store, quick, answers=[b"A"])
        settle(store, slow, answers=[b"late"])
        settle(store, take(store), answers=[b"B"])
        assert store.answers(MODEL, "t") == [b"A", b"B"]

    def test_turns_go_round_and_a_new_task_waits_for_one_of_each(self, make):
        store = make()
        for name in "abc":
            store.accept(new(name, *[b"x"] * 3))
        given_out = []
        for _ in range(4):
            turn = take(store, max_chunks=1)
            settle(store, turn, answers=[b"X"])
            given_out.append(turn.task_id)
        store.accept(new("d", b"x"))
        for _ in range(6):
            turn = take(store, max_chunks=1)
            settle(store, turn, answers=[b"X"])
            given_out.append(turn.task_id)
        assert "".join(given_out) == "abca" + "bcadbc"

    def test_who_waits_lets_others_go_first_and_is_not_counted_where_it_was_only_refused(
        self, make
    ):
        store = make()
        store.accept(new("a", b"x"))
        settle(store, take(store), Wait(10, False, "too much in flight"))
        assert take(store, now_s=5) is None
        assert store.find(MODEL, "a").reason == "too much in flight"
        turn = take(store, now_s=12)
        assert turn.num_attempts == 1
        settle(store, turn, Wait(10, True, "a fault"), now_s=12)
        assert take(store, now_s=30).num_attempts == 2

    def test_a_suspect_is_given_out_alone_chunk_by_chunk(self, make):
        store = make()
        store.accept(new("a", b"x", b"y"))
        take(store)
        store.accept(new("b", b"z"))
        turn = take(store)
        assert (turn.task_id, turn.bodies) == ("a", [b"x"])
        assert take(store, may_be_suspect=False).task_id == "b"
        assert take(store, but=["a"], may_be_suspect=False) is None

    def test_it_begins_again_without_what_another_version_answered(self, make):
        store = make()
        store.accept(new("t", b"a", b"b"))
        settle(store, take(store, max_chunks=1), answers=[b"A"], version=3)
        settle(store, take(store), BeginAgain("version 3 is gone"), version=3)
        turn = take(store)
        assert (turn.first, turn.version, turn.num_attempts) == (0, None, 1)
        settle(store, turn, answers=[b"A2", b"B2"], version=4)
        assert store.answers(MODEL, "t") == [b"A2", b"B2"]

    def test_a_failed_task_says_why_and_keeps_no_rows(self, make):
        store = make()
        store.accept(new("t", b"a", b"b"))
        settle(store, take(store), Fail("no_score", "rows 0 to 1: no number"), answers=[b"A"])
        state = store.find(MODEL, "t")
        assert (state.status, state.code, state.reason) == (
            *("failed", "no_score"),
            "rows 0 to 1: no number",
        )
        assert store.answers(MODEL, "t") == []
        assert take(store) is None

    def test_what_is_late_fails_and_what_is_old_is_forgotten(self, make):
        store = make()
        store.accept(new("late", b"a", deadline_s=10))
        store.accept(new("good", b"a"))
        settle(store, take(store, but=["late"]), answers=[b"A"], now_s=5)
        assert take(store, now_s=11) is None
        store.sweep(now_s=11, result_life_s=100)
        assert store.find(MODEL, "late").code == "deadline_exceeded"
        store.sweep(now_s=106, result_life_s=100)
        assert store.find(MODEL, "good") is None
        assert store.answers(MODEL, "good") == []
        assert store.find(MODEL, "late").status == "failed"

    def test_only_what_nobody_works_on_is_removed(self, make):
        store = make()
        store.accept(new("t", b"a"))
        assert store.remove(MODEL, "t").status == "queued"
        assert store.find(MODEL, "t") is None
        store.accept(new("t", b"a"))
        turn = take(store)
        assert store.remove(MODEL, "t").status == "running"
        settle(store, turn, answers=[b"A"])
        assert store.remove(MODEL, "t").status == "done"
        assert store.answers(MODEL, "t") == []
        assert store.remove(MODEL, "t") is None

    def test_it_takes_no_more_than_it_may_hold(self, make):
        store = make(max_waiting=2)
        assert store.accept(new("a", b"x")).status == "queued"
        store.accept(new("b", b"x"))
        assert store.accept(new("c", b"x")) == Full("2 async requests wait")
        assert store.find(MODEL, "c") is None
        # One that is known is answered all the same.
        assert store.accept(new("a", b"x")).status == "queued"
        settle(store, take(store), answers=[b"A"])
        assert store.accept(new("c", b"x")).status == "queued"

    def test_nor_more_bytes_nor_more_results(self, make):
        store = make(max_bytes=3)
        assert store.accept(new("a", b"1234")).status == "queued"
        assert isinstance(store.accept(new("b", b"1")), Full)
        settle(store, take(store), answers=[b"A"])
        assert store.accept(new("b", b"1")).status == "queued"
        assert isinstance(make(max_kept=2).accept(new("c", b"1")), Full)

    def test_models_do_not_see_each_others_tasks(self, make):
        store = make()
        store.accept(new("t", b"a", model="other"))
        assert take(store) is None
        assert store.find(MODEL, "t") is None
        assert store.remove(MODEL, "t") is None


class TestInAFile(StoreBehaviour):
    @pytest.fixture
    def make(self, tmp_path: Path):
        return lambda **bounds: TaskStore(f"sqlite:///{tmp_path}/serving/tasks.db", **bounds)

    def test_the_file_is_for_its_owner_alone_and_survives_a_power_cut(self, tmp_path: Path, make):
        store = make()
        assert (tmp_path / "serving" / "tasks.db").stat().st_mode & 0o777 == 0o600
        with store._database.reading() as connection:
            assert connection.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2
            assert connection.exec_driver_sql("PRAGMA journal_mode").scalar_one() == "wal"

    def test_many_who_send_the_same_at_once_make_one_task(self, make):
        stores = [make() for _ in range(4)]
        found = []
        threads = [
            threading.Thread(target=lambda s=store: found.append(s.accept(new("t", b"a", b"b"))))
            for store in stores
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [state.status for state in found] == ["queued"] * 4
        assert take(make()).bodies == [b"a", b"b"]

    def test_a_store_that_is_gone_is_told(self, tmp_path: Path):
        (tmp_path / "tasks.db").write_bytes(b"no database" * 1000)
        with pytest.raises(PenstockError, match="does not answer"):
            TaskStore(f"sqlite:///{tmp_path}/tasks.db")


@pytest.mark.servers
class TestOnPostgres(StoreBehaviour):
    @pytest.fixture
    def make(self, postgres, request):
        url = postgres.create(f"tasks_{abs(hash(request.node.name))}")
        made: list[TaskStore] = []

        def make(**bounds) -> TaskStore:
            made.append(TaskStore(url, **bounds))
            return made[-1]

        yield make
        for store in made:
            store.close()


@pytest.mark.parametrize("num_cases", some_slow((3, 200), in_every_run={3}))
def test_no_two_turns_of_a_task_while_another_that_is_ready_has_none(num_cases, tmp_path_factory):
    @given(
        sizes=st.lists(st.integers(1, 4), min_size=1, max_size=5),
        lost=st.lists(st.booleans(), max_size=12),
    )
    @how(max_examples=num_cases, deadline=None)
    def law(sizes, lost):
        check_turns(TaskStore(f"sqlite:///{tmp_path_factory.mktemp('turns')}/t.db"), sizes, lost)

    law()


def check_turns(store: TaskStore, sizes, lost) -> None:
    for number, size in enumerate(sizes):
        store.accept(new(f"{number}", *[b"x"] * size))
    losses = itertools.chain(lost, itertools.repeat(False))
    left = dict(enumerate(sizes))
    since: dict[str, set[str]] = {}
    while (turn := take(store, max_chunks=1)) is not None:
        ready = {f"{number}" for number, size in left.items() if size} - {turn.task_id}
        if turn.task_id in since:
            assert ready <= since[turn.task_id]
        since[turn.task_id] = set()
        for others in since.values():
            others.add(turn.task_id)
        if not next(losses):
            settle(store, turn, answers=[b"X"])
            left[int(turn.task_id)] -= 1
    assert not any(left.values())
    store.close()
