"""Finds and ends the processes of our own Ray, and of no other."""

import contextlib
from collections.abc import Iterable

import psutil

from penstock.settings import CLUSTER_ID_VARIABLE

_TERM_WAIT_S = 2.0


def find(cluster_id: str) -> list[psutil.Process]:
    """Find every process that carries our mark, and all that those have started.

    Our own process and the ones above it are left out: `penstock down` may itself be called by a
    program that a marked process started.
    """
    us = psutil.Process()
    spared = {us.pid, *(p.pid for p in us.parents())}
    found: dict[int, psutil.Process] = {}
    for process in psutil.process_iter():
        if process.pid in spared or process.pid in found:
            continue
        try:
            if process.environ().get(CLUSTER_ID_VARIABLE) != cluster_id:
                continue
            family = [process, *process.children(recursive=True)]
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess, OSError):
            continue
        found.update({p.pid: p for p in family if p.pid not in spared})
    return list(found.values())


def end(cluster_id: str) -> int:
    """End every process of the cluster: asked first, then killed; give their number.

    Each is ended by its pid, and psutil checks the start time, so that a pid used again by
    somebody else is left alone.
    """
    num_ended = 0
    # A process caught while it forks leaves a child that the first look did not see.
    while processes := find(cluster_id):
        num_ended += len(processes)
        _signal(processes)
    return num_ended


def _signal(processes: Iterable[psutil.Process]) -> None:
    alive = list(processes)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(alive, timeout=_TERM_WAIT_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(alive, timeout=_TERM_WAIT_S)


def started_s(pid: int) -> float | None:
    """When the process started, in seconds since the epoch; None where there is no such one."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        return float(process.create_time())
    except psutil.NoSuchProcess:
        return None


def command_line(process: psutil.Process) -> list[str]:
    """Give the process's arguments; none where it is gone."""
    try:
        return list(process.cmdline())
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return []
