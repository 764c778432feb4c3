import asyncio
import itertools
import time
from pathlib import Path

import orjson
import pytest
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st

from cases import some_slow
from payments import settings_in
from penstock.errors import RequestError
from penstock.serving import http
from penstock.serving.task_policy import MAX_ATTEMPTS, Keep
from penstock.serving.task_store import TaskStore
from penstock.serving.task_tables import NewTask
from penstock.serving.task_worker import TaskWorker

MODEL = "spills"


class Killed(BaseException):
    """Stands in for a kill: nothing behind it runs."""


class Scorer:
    """Answers a chunk by its own values, and meets what it is told to."""

    def __init__(self, events=(), *, version: int = 1) -> None:
        self.events = iter(events)
        self.version = version
        self.asked: list[tuple[str, str, str]] = []

    async def __call__(self, path, headers, body) -> http.Answer:
        self.asked.append((path, dict(headers)[b"x-request-id"].decode(), body.decode()))
        event = next(self.events, "answer")
        if event == "kill":
            raise Killed
        if event == "fault":
            return http.error_answer(RequestError(503, "internal", "it broke"))
        if event == "refuse":
            return http.error_answer(RequestError(503, "overloaded", "too much", retry_after_s=0))
        if "poison" in body.decode():
            raise Killed
        if "versions" in path and f"versions/{self.version}/" not in path:
            return http.error_answer(RequestError(404, "unknown_version", "another is"))
        rows = orjson.loads(body)["rows"]
        document = {"version": self.version, "predictions": [f"{row}!" for row in rows]}
        return http.Answer(status=200, body=orjson.dumps(document))


def accept(store: TaskStore, task_id: str, chunks: list[list], **changes) -> None:
    new = {
        "model": MODEL,
        "task_id": task_id,
        "asked_version": None,
        "num_rows": sum(map(len, chunks)),
        "rows_per_chunk": len(chunks[0]),
        "chunks": [orjson.dumps({"rows": rows}) for rows in chunks],
        "created_at_s": 0.0,
        "deadline_s": 1e12,
    }
    store.accept(NewTask(**{**new, **changes}))


def work(folder: Path, scorer: Scorer, *, kind=TaskStore, kill_log: bool = False) -> bool:
    """One round of a worker that is started anew; says whether it found work, or was killed."""

    async def logged() -> None:
        if kill_log:
            raise Killed

    store = kind(f"sqlite:///{folder}/tasks.db")
    worker = TaskWorker(settings_in(folder), MODEL, score=scorer, logged=logged)
    # Waits are in real seconds; here time does not matter.
    with store._database.writing() as connection:
        connection.exec_driver_sql("UPDATE penstock_tasks SET not_before_s = 0")
    try:
        return asyncio.run(worker.work(store))
    except Killed:
        return True
    finally:
        store.close()


EVENTS = st.sampled_from(["answer", "answer", "refuse", "kill", "fault"])


def check_that_nothing_is_lost(folder: Path, sizes, events, kind=TaskStore) -> None:
    """Whatever is met on the way: each task is done, its answers whole, in order, each once."""
    store = TaskStore(f"sqlite:///{folder}/tasks.db")
    tasks = {
        f"t{n}": [[f"{n}-{chunk}-{row}" for row in range(2)] for chunk in range(size)]
        for n, size in enumerate(sizes)
    }
    for task_id, chunks in tasks.items():
        accept(store, task_id, chunks)
    # Fewer kills and faults than make anybody give up.
    bad = itertools.count()
    kept = [e for e in events if e not in ("kill", "fault") or next(bad) < MAX_ATTEMPTS - 1]
    scorer = Scorer(kept)
    for _ in range(500):
        if not work(folder, scorer, kind=kind):
            break
    for task_id, chunks in tasks.items():
        assert store.find(MODEL, task_id).status == "done"
        answers = b",".join(store.answers(MODEL, task_id))
        assert orjson.loads(b"[" + answers + b"]") == [f"{row}!" for rows in chunks for row in rows]
    # A chunk that was tried again had the same id each time.
    bodies = {}
    for _, request_id, body in scorer.asked:
        assert bodies.setdefault(request_id, body) == body
    store.close()


@pytest.mark.parametrize("num_cases", some_slow((3, 200), in_every_run={3}))
def test_nothing_accepted_is_lost_whatever_happens_on_the_way(num_cases, tmp_path_factory):
    @given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=4), events=st.lists(EVENTS))
    @how(max_examples=num_cases, deadline=None)
    def law(sizes, events):
        check_that_nothing_is_lost(tmp_path_factory.mktemp("tasks"), sizes, events)

    law()


def test_where_chunks_were_settled_as_they_are_given_out_a_kill_would_lose_them(tmp_path: Path):
    class EarlyStore(TaskStore):
        def take_turn(self, *given, **named):
            turn = super().take_turn(*given, **named)
            if turn is not None:
                self.settle([(turn, 1, [b'"early"'] * len(turn.bodies), Keep())], now_s=time.time())
            return turn

    with pytest.raises(AssertionError):
        check_that_nothing_is_lost(tmp_path, [3], ["kill"], EarlyStore)


def test_a_kill_before_the_log_is_written_repeats_the_chunks(tmp_path: Path):
    store = TaskStore(f"sqlite:///{tmp_path}/tasks.db")
    accept(store, "t", [["a"], ["b"]])
    scorer = Scorer()
    work(tmp_path, scorer, kill_log=True)
    assert store.find(MODEL, "t").num_rows_done == 0
    while work(tmp_path, scorer):
        pass
    assert store.answers(MODEL, "t") == [b'"a!"', b'"b!"']
    assert {request_id for _, request_id, _ in scorer.asked} == {"t-0", "t-1"}


def test_rows_that_kill_their_server_fail_alone_and_name_themselves(tmp_path: Path):
    store = TaskStore(f"sqlite:///{tmp_path}/tasks.db")
    accept(store, "bad", [["a", "b"], ["poison", "c"]])
    for n in range(3):
        accept(store, f"good{n}", [["a"], ["b"]])
    rounds = itertools.takewhile(lambda _: work(tmp_path, Scorer()), range(100))
    assert len(list(rounds)) < 50
    bad = store.find(MODEL, "bad")
    assert (bad.status, bad.code) == ("failed", "gave_up")
    assert bad.reason.startswith("rows 2 to 3: no answer after 5 tries")
    assert {store.find(MODEL, f"good{n}").status for n in range(3)} == {"done"}


def test_all_rows_are_of_one_version_the_one_that_is_there_at_the_end(tmp_path: Path):
    store = TaskStore(f"sqlite:///{tmp_path}/tasks.db")
    accept(store, "t", [[n] for n in range(20)])
    work(tmp_path, Scorer(version=1))
    assert store.find(MODEL, "t").version == 1
    newer = Scorer(version=2)
    while work(tmp_path, newer):
        pass
    state = store.find(MODEL, "t")
    assert (state.status, state.version) == ("done", 2)
    assert len(store.answers(MODEL, "t")) == 20
    paths = [path for path, _, _ in newer.asked]
    assert paths[0].endswith("/versions/1/predict")
    assert paths[1] == "/v1/models/spills/predict"
    assert set(paths[2:]) == {"/v1/models/spills/versions/2/predict"}


def test_a_version_that_was_asked_for_is_waited_for(tmp_path: Path):
    store = TaskStore(f"sqlite:///{tmp_path}/tasks.db")
    accept(store, "t", [["a"]], asked_version=7)
    work(tmp_path, Scorer(version=1))
    assert store.find(MODEL, "t").status == "running"
    work(tmp_path, Scorer(version=7))
    assert store.find(MODEL, "t").status == "done"


def test_where_nobody_asked_no_store_is_made(tmp_path: Path):
    settings = settings_in(tmp_path)

    async def run() -> None:
        worker = TaskWorker(settings, MODEL, score=Scorer(), logged=lambda: None)
        worker.start()
        worker.start()
        await asyncio.sleep(0.1)
        worker.close()

    asyncio.run(run())
    assert not (settings.storage_path / "serving").exists()
