"""What a run ran on: the machine, and the versions of every package."""

import hashlib
import os
import platform
import sys
from importlib import metadata
from pathlib import Path

import orjson
import psutil

from penstock.records import Record

_ACCELERATOR = "accelerator_type:"


class Hardware(Record):
    """The machine of the driver, and what Ray has."""

    machine: str
    cpu_model: str
    num_cores: int
    """That this process may use."""
    memory_bytes: int
    num_nodes: int
    """Of the Ray that the run is on; 0: it was on none."""
    accelerators: dict[str, float]
    """Ray's own names of its GPUs, and how many machines have each."""


def hardware() -> Hardware:
    """Look at this machine, and at the Ray that this process is connected to."""
    resources: dict[str, float] = {}
    num_nodes = 0
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        resources = ray.cluster_resources()
        num_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    return Hardware(
        machine=platform.machine(),
        cpu_model=_cpu_model(),
        num_cores=len(os.sched_getaffinity(0)),
        memory_bytes=psutil.virtual_memory().total,
        num_nodes=num_nodes,
        accelerators={
            name.removeprefix(_ACCELERATOR): count
            for name, count in resources.items()
            if name.startswith(_ACCELERATOR)
        },
    )


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or "unknown")


def packages() -> dict[str, str]:
    """Give Python's version and that of every installed package, by name."""
    found = {
        distribution.metadata["Name"].lower(): distribution.version
        for distribution in metadata.distributions()
        if distribution.metadata["Name"]
    }
    return {"python": platform.python_version(), **dict(sorted(found.items()))}


def digest(versions: dict[str, str]) -> str:
    """Give the SHA-256 of the versions: equal digests, equal environments."""
    return hashlib.sha256(orjson.dumps(versions, option=orjson.OPT_SORT_KEYS)).hexdigest()
