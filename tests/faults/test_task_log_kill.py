"""Workers that are killed again and again: each row's answer is kept, and its prediction logged."""

import asyncio
import random
import time
from dataclasses import replace
from pathlib import Path

import orjson
import pytest

from forks import forks
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.serving import http
from penstock.serving.log_collection import collect, predictions_table
from penstock.serving.prediction_log import INTERVAL_S, log_folder
from penstock.serving.task_store import TaskStore
from penstock.serving.task_tables import NewTask
from penstock.serving.task_worker import TaskWorker
from penstock.settings import Settings
from prediction_logs import answered, open_log
from waiting import wait_for

pytestmark = pytest.mark.slow

MODEL = "spills"
# More than the rounds up to the last kill can do.
NUM_CHUNKS = 60
NUM_KILLS = 3
SEEDS = (1, 2, 3)


def _work(root: Path, *, waits_for_log: bool) -> None:
    """Work until killed, as a replica does: a real store, a real prediction log."""
    settings = settings_in(root)
    interval_s = INTERVAL_S if waits_for_log else 3600.0
    log = open_log(log_folder(settings, USE_CASE), interval_s=interval_s)

    async def score(_path: str, headers: http.Headers, body: bytes) -> http.Answer:
        name = dict(headers)[b"x-request-id"].decode()
        rows = orjson.loads(body)["rows"]
        batch = answered(name, len(rows))
        log.put(replace(batch, requests=[replace(batch.requests[0], prediction_id=name)]))
        found = [{"prediction_id": f"{name}-{n}"} for n in range(len(rows))]
        await asyncio.sleep(0.005)
        return http.Answer(status=200, body=orjson.dumps({"version": 1, "predictions": found}))

    async def at_once() -> None:
        """The guard, off."""

    async def run() -> None:
        logged = log.caught_up if waits_for_log else at_once
        worker = TaskWorker(settings, MODEL, score=score, logged=logged)
        worker.start()
        await asyncio.sleep(600)

    asyncio.run(run())


def opened(settings: Settings) -> TaskStore:
    store = TaskStore.of(settings)
    for number in range(3):
        new = NewTask(
            model=MODEL,
            task_id=f"t{number}",
            asked_version=None,
            num_rows=2 * NUM_CHUNKS,
            rows_per_chunk=2,
            chunks=[orjson.dumps({"rows": [{}, {}]})] * NUM_CHUNKS,
            created_at_s=time.time(),
            deadline_s=time.time() + 3600,
        )
        store.accept(new)
    return store


def killed_until_done(root: Path, seed: int, *, waits_for_log: bool) -> tuple[list, list]:
    """Start a worker, kill it at a seeded moment, and so on; gives answers and logged ids."""
    settings = settings_in(root)
    store = opened(settings)
    moments = random.Random(seed)
    names = [f"t{number}" for number in range(3)]
    for kill in range(NUM_KILLS + 1):
        process = forks.Process(target=_work, args=(root,), kwargs={"waits_for_log": waits_for_log})
        before = [store.find(MODEL, name).num_rows_done for name in names]
        process.start()
        if kill < NUM_KILLS:
            # Behind some progress: five kills in a row without any are a poison's.
            wait_for(lambda was=before: was != [store.find(MODEL, n).num_rows_done for n in names])
            time.sleep(moments.uniform(0.0, 0.3))
            assert {store.find(MODEL, n).status for n in names} != {"done"}
        else:
            wait_for(lambda: all(store.find(MODEL, n).status == "done" for n in names))
        process.kill()
        process.join()
    kept = [
        prediction["prediction_id"]
        for name in names
        for prediction in orjson.loads(b"[" + b",".join(store.answers(MODEL, name)) + b"]")
    ]
    store.close()
    if collect(settings, USE_CASE).num_predictions == 0:
        return kept, []
    table = tables.scan(settings, predictions_table(USE_CASE)).collect()
    return kept, table["prediction_id"].to_list()


class TestKilledWorker:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_every_row_is_answered_once_and_every_answer_logged(self, tmp_path: Path, seed: int):
        kept, logged = killed_until_done(tmp_path, seed, waits_for_log=True)
        wanted = [f"t{n}-{m}-{row}" for n in range(3) for m in range(NUM_CHUNKS) for row in (0, 1)]
        assert kept == wanted
        assert set(logged) == set(wanted)

    def test_where_answers_were_kept_before_the_log_is_written_it_would_lack_them(
        self, tmp_path: Path
    ):
        kept, logged = killed_until_done(tmp_path, SEEDS[0], waits_for_log=False)
        assert len(kept) == 3 * 2 * NUM_CHUNKS
        assert not set(kept) <= set(logged)
