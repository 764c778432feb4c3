"""A head and a worker of cluster.yaml on one machine, each started by its own commands there."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

from penstock.cluster import processes
from penstock.cluster.local import LOOPBACK_NODE_VARIABLE, temp_dir
from penstock.settings import CLUSTER_ID_VARIABLE, Settings
from projects import REPO_ROOT, Completed, Project

# Stands before `ray`: stops no other Ray of the machine, and puts the ports and sizes of one node
# of a test where cluster.yaml has those of a machine. Ray keeps a node on loopback only where it
# believes that there is no other one; the processes that it starts may go on believing so.
_RAY = """#!{python}
import functools, json, os, sys
if sys.argv[1] == "stop":
    sys.exit(0)
with open({folder!r} + "/started.jsonl", "a") as log:
    log.write(json.dumps(sys.argv[1:]) + chr(10))
told = json.load(open({told!r}))
os.environ.update(told["environment"])
from ray._private import ray_constants, services
from ray.scripts.scripts import main
services.get_node_ip_address = lambda *_: "127.0.0.1"
ray_constants.ENABLE_RAY_CLUSTER = True
# On a machine of its own a head does not find the worker, and takes it for the head before.
services.find_gcs_addresses = functools.cache(set)
replaced = ("--port=", "--address=", "--autoscaling-config")
sys.argv[1:] = [one for one in sys.argv[1:] if not one.startswith(replaced)] + told["flags"]
main()
"""
_START_TIMEOUT_S = 180.0


@dataclass
class Node:
    """One node: a home folder as file_mounts make it, and the processes that started in it."""

    home: Path
    commands: list[str]
    flags: list[str]
    settings: dict[str, str]
    more: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        return f"two-nodes-{os.getpid()}-{self.home.parent.name}-{self.home.name}"

    def prepare(self, token: str) -> None:
        for folder in (".ray", ".penstock", "bin"):
            (self.home / folder).mkdir(parents=True)
        (self.home / "penstock").symlink_to(REPO_ROOT)
        lines = "".join(f"{name}='{value}'\n" for name, value in self.settings.items())
        for path, content in ((".ray/auth_token", token), (".penstock/cluster.env", lines)):
            (self.home / path).write_text(content)
            (self.home / path).chmod(0o600)
        told = self.home / "told.json"
        # What Ray sets up with the container's environment.
        marked = {CLUSTER_ID_VARIABLE: self.mark, "SPT_NOENV": "1", LOOPBACK_NODE_VARIABLE: "0"}
        told.write_text(json.dumps({"flags": self.flags, "environment": {**marked, **self.more}}))
        ray = self.home / "bin" / "ray"
        ray.write_text(_RAY.format(python=sys.executable, told=str(told), folder=str(self.home)))
        ray.chmod(0o755)
        # A job's driver runs in a login shell.
        (self.home / ".bash_profile").write_text(f"export PATH={self._path}\n")

    @property
    def _path(self) -> str:
        return f"{self.home / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}"

    def start(self) -> str:
        """Run the node's commands as `ray up` does; gives what they said on stderr."""
        kept = {n: os.environ[n] for n in ("PYTHONPATH", "LANG", "TMPDIR") if n in os.environ}
        said = ""
        for number, command in enumerate(self.commands):
            log = self.home / f"said-{number}"
            with log.open("w") as output:
                done = subprocess.run(
                    ["bash", "-c", command],
                    env={**kept, "PATH": self._path, "HOME": str(self.home), "RAY_HEAD_IP": "head"},
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_START_TIMEOUT_S,
                    check=False,
                )
            said += log.read_text()
            assert done.returncode == 0, said
        return said

    @property
    def commands_given(self) -> list[list[str]]:
        """What its commands called `ray` with, one list a start."""
        return [json.loads(line) for line in (self.home / "started.jsonl").read_text().splitlines()]

    def processes(self) -> list[psutil.Process]:
        return processes.find(self.mark)

    def replica_pids(self) -> set[int]:
        return {p.pid for p in self.processes() if "ServeReplica" in "".join(_command(p))}

    def kill(self) -> int:
        """Kill everything at once, as a power cut would; gives how many there were."""
        num_killed = 0
        while found := self.processes():
            num_killed += len(found)
            for process in found:
                if process.is_running():
                    process.kill()
            psutil.wait_procs(found, timeout=10)
        return num_killed


def _command(process: psutil.Process) -> list[str]:
    return processes.command_line(process)


@dataclass(frozen=True)
class TwoNodes:
    """The head, which gives no CPU away, and the worker, where every replica is."""

    head: Node
    worker: Node
    project: Project
    head_port: int
    worker_port: int
    """Where the worker's ingress listens."""
    rays_folder: Path

    def command_lines(self) -> str:
        both = [*self.head.processes(), *self.worker.processes()]
        return "\n".join(" ".join(_command(process)) for process in both)

    def logs(self) -> Iterator[Path]:
        return (path for path in self.rays_folder.glob("*/session_2*/logs/**/*") if path.is_file())

    def run(self, *arguments: str) -> Completed:
        return self.project.run(*arguments)

    def must(self, *arguments: str) -> Completed:
        return self.project.must(*arguments)

    def status(self) -> dict[str, Any]:
        """What `penstock status` says; empty where nobody answers."""
        done = self.run("status", "--json")
        found: dict[str, Any] = done.json if done.code == 0 else {}
        return found

    def applications(self) -> dict[str, str]:
        return {one["name"]: one["status"] for one in self.status().get("applications", [])}


@contextmanager
def two_nodes(
    settings: Settings, folder: Path, *, first_port: int, redis: str | None
) -> Iterator[TwoNodes]:
    """Start both on ports from `first_port` on; end them at the end, whatever happened."""
    written = yaml.safe_load((REPO_ROOT / "cluster.yaml").read_text())
    gcs, dashboard, client, serving, worker_serving = (first_port + n for n in (0, 1, 2, 10, 430))
    # Ray's sockets have long names.
    rays_folder = Path(f"/tmp/two-{os.getpid()}-{first_port}")  # noqa: S108  # of this test alone
    common = {
        "PENSTOCK_STORAGE__ROOT": str(settings.storage_path),
        "PENSTOCK_SERVING__PORT": str(serving),
    } | ({} if redis is None else {"PENSTOCK_RAY__REDIS": redis})
    flags = [
        *("--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0"),
        *("--min-worker-port=0", "--max-worker-port=0", f"--object-store-memory={200 << 20}"),
    ]
    head = Node(
        folder / "head",
        written["head_start_ray_commands"],
        [
            *(*flags, f"--port={gcs}", f"--dashboard-port={dashboard}", "--num-cpus=0"),
            *(f"--temp-dir={rays_folder / 'head'}", f"--ray-client-server-port={client}"),
        ],
        common,
        {"DASHBOARD_METRIC_PORT": str(first_port + 3)},
    )
    worker = Node(
        folder / "worker",
        written["worker_start_ray_commands"],
        [
            *(*flags, f"--address=127.0.0.1:{gcs}", "--num-cpus=4"),
            f"--temp-dir={rays_folder / 'worker'}",
        ],
        common,
        {
            # Two nodes of one machine cannot have the same ports.
            "RAY_SERVE_WORKER_PROXY_HTTP_PORT": str(worker_serving),
            "RAY_SERVE_HAPROXY_STATS_PORT": str(worker_serving + 1),
            "RAY_SERVE_HAPROXY_METRICS_PORT": str(worker_serving + 2),
        },
    )
    token = secrets.token_hex(32)
    for node in (head, worker):
        node.prepare(token)
    project = Project(
        storage=settings.storage_path,
        more={
            "PENSTOCK_RAY__ADDRESS": f"http://127.0.0.1:{dashboard}",
            "PENSTOCK_RAY__TOKEN_PATH": str(head.home / ".ray" / "auth_token"),
        },
    )
    try:
        yield TwoNodes(head, worker, project, serving, worker_serving, rays_folder)
    finally:
        for node in (head, worker):
            node.kill()
        for left in (rays_folder, temp_dir(settings)):
            shutil.rmtree(left, ignore_errors=True)


def free_block() -> int:
    """Find a first port with the ones behind it free.

    Below those that the system gives to outgoing connections, above those of the other tests: a
    head comes back to its ports.
    """
    for first in range(30_600, 32_300, 440):
        if all(_is_free(first + n) for n in (0, 1, 2, 3, 10, 11, 12, 430, 431, 432)):
            return first
    raise AssertionError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
