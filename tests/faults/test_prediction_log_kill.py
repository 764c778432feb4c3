"""Replicas that are killed while they log: what was answered a second before is not lost."""

import os
import random
import time
from pathlib import Path

import pytest

from cases import some_slow
from forks import forks
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.serving.log_collection import collect, predictions_table
from penstock.serving.prediction_log import INTERVAL_S, log_folder
from penstock.settings import Settings
from prediction_logs import answered, open_log

_EVERY_S = 0.005
_MOST_S = 1.0
SEEDED_S = [round(random.Random(seed).uniform(1.2, 2.5), 2) for seed in (1, 2, 3)]


def _answer_for_ever(root: Path, told: Path, interval_s: float) -> None:
    """Log a batch every few milliseconds, and write down by another way when."""
    log = open_log(root, interval_s=interval_s)
    diary = os.open(told, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in range(10**6):
        log.put(answered(f"n{number}-", 2))
        os.write(diary, f"n{number}-0 {time.monotonic()}\n".encode())
        time.sleep(_EVERY_S)


def answered_before_kill(settings: Settings, after_s: float, interval_s: float) -> set[str]:
    """Run a replica's log and kill it; gives the requests that were answered a second before."""
    told = settings.storage_path / "diary"
    root = log_folder(settings, USE_CASE)
    process = forks.Process(target=_answer_for_ever, args=(root, told, interval_s))
    process.start()
    while not told.exists():
        time.sleep(0.01)
    time.sleep(after_s)
    killed_s = time.monotonic()
    process.kill()
    process.join()
    entries = (line.split() for line in told.read_text().splitlines() if " " in line)
    return {name for name, at_s in entries if float(at_s) <= killed_s - _MOST_S}


def collected(settings: Settings) -> list[str]:
    if collect(settings, USE_CASE).num_predictions == 0:
        return []
    return tables.scan(settings, predictions_table(USE_CASE)).collect()["prediction_id"].to_list()


class TestKilledReplica:
    @pytest.mark.parametrize("after_s", some_slow(SEEDED_S, in_every_run=SEEDED_S[:1]))
    def test_a_kill_costs_less_than_a_second_of_the_log(self, tmp_path: Path, after_s: float):
        settings = settings_in(tmp_path)
        wanted = answered_before_kill(settings, after_s, INTERVAL_S)
        found = collected(settings)
        assert len(wanted) > 10
        assert {f"{name}-{row}" for name in wanted for row in range(2)} <= set(found)
        assert len(found) == len(set(found))
        assert collect(settings, USE_CASE).num_predictions == 0

    def test_without_the_thread_at_work_it_costs_all(self, tmp_path: Path):
        settings = settings_in(tmp_path)
        assert answered_before_kill(settings, SEEDED_S[0], 3600.0)
        assert collected(settings) == []
