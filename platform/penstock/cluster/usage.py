"""What a job holds of Ray: asked of every node while it runs, and summed over its time."""

import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import psutil

from penstock.errors import ClusterError
from penstock.records import Record

_LONGEST_PAUSE_S = 5.0
_SLOWER = 1.3
_LAST_WORD_S = 2.0
_BYTES_PER_GB = 1e9
_DRIVER = 1
# In a placement group, which Ray Train takes, a resource is counted twice: once for its bundle and
# once, without a number, for the whole group.
_OF_A_BUNDLE = re.compile(r"(CPU|GPU|memory)_group_\d+_[0-9a-f]+")
_OF_A_GROUP = re.compile(r"(CPU|GPU|memory)_group_[0-9a-f]+")


class Held(Record):
    """What a job holds at a moment."""

    num_cpus: float
    num_gpus: float
    memory_bytes: float


class Usage(Record):
    """What a job has held, by time."""

    cpu_s: float = 0.0
    gpu_s: float = 0.0
    memory_gb_s: float = 0.0

    def plus(self, held: Held, seconds: float) -> "Usage":
        """Add what was held for so long."""
        return Usage(
            cpu_s=self.cpu_s + held.num_cpus * seconds,
            gpu_s=self.gpu_s + held.num_gpus * seconds,
            memory_gb_s=self.memory_gb_s + held.memory_bytes / _BYTES_PER_GB * seconds,
        )


class Meter:
    """Sums up what is held, on a thread of its own."""

    def __init__(
        self, read: Callable[[], Held], told: Callable[[Usage], None], *, first_s: float = 1.0
    ) -> None:
        """Read at once, after `first_s` seconds, then less and less often; tell the sum each time.

        What is read holds for the time since the reading before.
        """
        self._read = read
        self._told = told
        self._pause_s = first_s
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._lock = threading.Lock()
        self._last_s = time.monotonic()
        self._held: Held | None = None
        self._usage = Usage()

    def start(self) -> None:
        """Begin; what was held before is not counted."""
        self._last_s = time.monotonic()
        self._thread.start()

    def stop(self) -> Usage:
        """Give the sum up to now; what was read last holds for the rest."""
        self._ended.set()
        # Not for long: a raylet that has gone answers nobody.
        self._thread.join(_LAST_WORD_S)
        return self._add(self._held)

    def _run(self) -> None:
        while True:
            held: Held | None
            try:
                held = self._read()
            except Exception:  # noqa: BLE001  # Ray has many kinds of error for a node that goes
                held = self._held
            if self._ended.is_set():
                return
            usage = self._add(held)
            self._told(usage)
            if self._ended.wait(self._pause_s):
                return
            self._pause_s = min(self._pause_s * _SLOWER, _LONGEST_PAUSE_S)

    def _add(self, held: Held | None) -> Usage:
        with self._lock:
            now = time.monotonic()
            self._held = held
            if held is not None:
                self._usage = self._usage.plus(held, now - self._last_s)
            self._last_s = now
            return self._usage


def held_by_this_job() -> Held:
    """Ask the raylet of every node which of its workers belong to this job, and what they hold.

    The driver counts as one CPU: it works too, and Ray hands it none on a Ray of our own. Memory is
    that of the processes on this node, without what they share; on other nodes, what tasks and
    actors asked of Ray.

    Raises:
        ClusterError: this process is no driver.
    """
    import ray
    from ray._private.internal_api import node_stats

    if not ray.is_initialized():
        # Asked all the same, Ray would start a whole cluster, which dies with the asking thread
        # and takes this process along a minute later.
        raise ClusterError("this process is no driver of a Ray")
    job_id = ray.get_runtime_context().get_job_id()
    here = ray.get_runtime_context().get_node_id()
    cpus, gpus, memory_bytes = 1.0, 0.0, float(_private_bytes(psutil.Process().pid))
    for node in ray.nodes():  # type: ignore[no-untyped-call]  # Ray left it so
        if not node["Alive"]:
            continue
        address, port = node["NodeManagerAddress"], node["NodeManagerPort"]
        stats: Any = node_stats(address, port, include_memory_info=False)  # type: ignore[no-untyped-call]  # Ray left it so
        for worker in stats.core_workers_stats:
            if worker.job_id.hex() != job_id or worker.worker_type == _DRIVER:
                continue
            held = of_worker(
                {
                    name: sum(slot.allocation for slot in taken.resource_slots)
                    for name, taken in worker.used_resources.items()
                }
            )
            cpus += held.get("CPU", 0.0)
            gpus += held.get("GPU", 0.0)
            is_here = node["NodeID"] == here
            memory_bytes += _private_bytes(worker.pid) if is_here else held.get("memory", 0.0)
    return Held(num_cpus=cpus, num_gpus=gpus, memory_bytes=memory_bytes)


def of_worker(used: Mapping[str, float]) -> dict[str, float]:
    """Sum up a worker's resources by kind, whether they are of the node or of a placement group."""
    found: dict[str, float] = {}
    for kind in ("CPU", "GPU", "memory"):
        bundles = sum(_named(used, _OF_A_BUNDLE, kind))
        groups = sum(_named(used, _OF_A_GROUP, kind))
        found[kind] = used.get(kind, 0.0) + max(bundles, groups)
    return found


def _named(used: Mapping[str, float], pattern: re.Pattern[str], kind: str) -> Iterable[float]:
    for name, amount in used.items():
        match = pattern.fullmatch(name)
        if match and match.group(1) == kind:
            yield amount


def _private_bytes(pid: int) -> int:
    try:
        memory = psutil.Process(pid).memory_info()
    except psutil.Error:
        return 0
    # The object store is mapped into every process; it is no one's own.
    return max(int(memory.rss) - int(memory.shared), 0)
