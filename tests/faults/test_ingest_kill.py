"""Ingests that are killed, each in a real process, at every step and at seeded moments between."""

import dataclasses
import os
import random
import signal
import time
import uuid

import polars as pl
import pytest

from cases import some_slow
from data_room import SPILLS, settings_in, spills
from forks import forks
from penstock.data import quarantine, tables
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource

# Without a key nothing but the transactions keeps a file from landing twice.
TABLE = dataclasses.replace(SPILLS, key=())
NUM_FILES, ROWS_PER_FILE = 3, 2000
NUM_STEPS = 2 * NUM_FILES + 2 + 1 + NUM_FILES + 1
BEFORE = 5


def _files(root):
    return [FileSource(path=root / f"{n}.parquet") for n in range(NUM_FILES)]


def _without_guard(_digest):
    return f"ingest:{uuid.uuid4().hex}"


def _ingest_until(root, die_at, guarded, begun=None):
    """Ingest, tell when the first step is reached, and die by SIGKILL at the given one."""
    if not guarded:
        quarantine.transaction = _without_guard
    num_steps = 0

    def progress(_step, _done, _total=None, *, unit="rows"):
        nonlocal num_steps
        num_steps += 1
        if num_steps == 1 and begun is not None:
            begun.set()
        if num_steps == die_at:
            os.kill(os.getpid(), signal.SIGKILL)

    ingest(settings_in(root), TABLE, _files(root), progress)


@pytest.fixture
def root(tmp_path):
    return prepare(tmp_path)


def prepare(tmp_path):
    """A table with some rows, and three files with one bad row each to come."""
    tmp_path.mkdir(exist_ok=True)
    settings = settings_in(tmp_path)
    first = tmp_path / "first.parquet"
    spills(BEFORE, first=10**6).write_parquet(first)
    ingest(settings, TABLE, [FileSource(path=first)])
    for number, source in enumerate(_files(tmp_path)):
        rows = spills(ROWS_PER_FILE, first=number * ROWS_PER_FILE)
        bad = pl.col("id") == number * ROWS_PER_FILE + 7
        rows.with_columns(
            gate=pl.when(bad).then(pl.lit("east")).otherwise(pl.col("gate"))
        ).write_parquet(source.path)
    return tmp_path


def start(root, die_at=0, *, guarded=True, begun=None):
    process = forks.Process(target=_ingest_until, args=(root, die_at, guarded, begun))
    process.start()
    return process


def num_rows(root):
    settings = settings_in(root)
    kept = tables.scan(settings, TABLE.name).select(pl.len()).collect().item()
    bad = quarantine.read(settings, TABLE.name).select(pl.len()).collect().item()
    return kept, bad


COMPLETE = (BEFORE + NUM_FILES * (ROWS_PER_FILE - 1), NUM_FILES)


def assert_old_or_complete_then_finish(root):
    assert num_rows(root) in {(BEFORE, 0), COMPLETE}
    report = ingest(settings_in(root), TABLE, _files(root))
    assert report.num_read == report.num_kept + report.num_quarantined
    assert num_rows(root) == COMPLETE
    left = [p for p in (root / ".penstock" / "staging" / TABLE.name).iterdir() if p.is_dir()]
    assert left == []


class TestKilledIngest:
    @pytest.mark.parametrize(
        "die_at", some_slow(range(1, NUM_STEPS + 1), in_every_run={1, NUM_STEPS - 4, NUM_STEPS - 1})
    )
    def test_a_kill_at_any_step_leaves_the_old_state_or_the_new(self, root, die_at):
        process = start(root, die_at)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert_old_or_complete_then_finish(root)

    def test_a_kill_at_any_moment_leaves_the_old_state_or_the_new(self, tmp_path):
        whole_s = self.run_and_kill_after(prepare(tmp_path / "whole"), 60.0)[1]
        exits = set()
        for seed in range(4):
            root = prepare(tmp_path / str(seed))
            share = random.Random(seed).uniform(0.1, 0.9)
            code, ran_s = self.run_and_kill_after(root, share * whole_s)
            exits.add(code)
            if code == 0:
                # It was quicker than the one that was timed: the next is killed sooner.
                whole_s = ran_s
            assert_old_or_complete_then_finish(root)
        # Else every kill came too late, and shows nothing.
        assert -signal.SIGKILL in exits

    @staticmethod
    def run_and_kill_after(root, after_s):
        """Kill an ingest so long after its first step; give its exit code and how long it ran."""
        begun = forks.Event()
        process = start(root, begun=begun)
        assert begun.wait(60)
        first_step_s = time.monotonic()
        process.join(after_s)
        process.kill()
        process.join()
        return process.exitcode, time.monotonic() - first_step_s

    def test_two_kills_in_a_row_do_no_harm(self, root):
        for die_at in (NUM_STEPS - 1, NUM_STEPS - 4):
            start(root, die_at).join()
        assert_old_or_complete_then_finish(root)

    def test_with_the_transactions_off_rows_land_twice(self, root, monkeypatch):
        start(root, NUM_STEPS, guarded=False).join()
        monkeypatch.setattr(quarantine, "transaction", _without_guard)
        ingest(settings_in(root), TABLE, _files(root))
        assert num_rows(root)[0] > COMPLETE[0]

    def test_a_living_ingest_reports_each_step(self, root):
        # Were there more steps than NUM_STEPS, the kills above would leave out the last ones.
        process = start(root, NUM_STEPS + 1)
        process.join()
        assert process.exitcode == 0
