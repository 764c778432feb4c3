import os
import subprocess
import sys
import uuid

import psutil
import pytest

from penstock.cluster import processes
from penstock.settings import CLUSTER_ID_VARIABLE

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True)"
)


@pytest.fixture
def start():
    started: list[subprocess.Popen[bytes]] = []

    def start(code: str, cluster_id: str | None) -> subprocess.Popen[bytes]:
        mark = {CLUSTER_ID_VARIABLE: cluster_id} if cluster_id else {}
        process = subprocess.Popen(
            [sys.executable, "-c", f"{code}\nimport time; time.sleep(60)"],
            env=os.environ | mark,
            stdout=subprocess.PIPE,
        )
        assert process.stdout
        process.stdout.readline()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


class TestEnd:
    def test_it_ends_what_carries_the_mark_and_nothing_else(self, start):
        ours, others = uuid.uuid4().hex, uuid.uuid4().hex
        marked = start("print(1, flush=True)", ours)
        foreign = start("print(1, flush=True)", others)
        unmarked = start("print(1, flush=True)", None)
        assert [p.pid for p in processes.find(ours)] == [marked.pid]
        assert processes.end(ours) == 1
        assert processes.started_s(marked.pid) is None
        assert foreign.poll() is None
        assert unmarked.poll() is None

    def test_one_that_ignores_the_request_is_killed(self, start, monkeypatch):
        monkeypatch.setattr(processes, "_TERM_WAIT_S", 0.3)
        ours = uuid.uuid4().hex
        process = start(STUBBORN, ours)
        processes.end(ours)
        assert processes.started_s(process.pid) is None

    def test_a_child_that_lost_the_mark_is_ended_with_its_parent(self, start):
        ours = uuid.uuid4().hex
        parent = start(
            "import subprocess, sys\n"
            "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], env={})\n"
            "print(1, flush=True)",
            ours,
        )
        (child,) = psutil.Process(parent.pid).children()
        processes.end(ours)
        assert processes.started_s(child.pid) is None

    def test_our_own_process_is_spared(self, monkeypatch):
        # The mark in our own environment: as if a marked process had started us.
        ours = uuid.uuid4().hex
        code = f"from penstock.cluster import processes\nprint(processes.end({ours!r}))\n"
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {CLUSTER_ID_VARIABLE: ours},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == "0"


def test_a_process_that_ended_has_no_start():
    process = subprocess.Popen([sys.executable, "-c", ""])
    assert processes.started_s(os.getpid()) is not None
    process.wait()
    assert processes.started_s(process.pid) is None
