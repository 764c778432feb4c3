"""A Ray on this machine that is ours alone: `up` starts, `current` finds, `down` ends it."""

import hashlib
import os
import shutil
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from pydantic import ValidationError

from penstock.cluster import ports, processes, tls, tokens
from penstock.cluster.ingress import grpc_port, serve_environment
from penstock.cluster.loopback import WORKER_HOOK, WORKER_HOOK_VARIABLE
from penstock.errors import ClusterError
from penstock.locks import exclusive
from penstock.records import Record
from penstock.settings import CLUSTER_ID_VARIABLE, Settings, inherited_environment

HOST = "127.0.0.1"
_START_TIMEOUT_S = 180.0
_LOCK_WAIT_S = 120.0
# Start times are counted from a boot time that moves when the clock is set.
_ALIVE_TOLERANCE_S = 30.0
# One level down, because Ray opens its temporary folder to everybody (0777).
_RAYS_FOLDER = "r"
_INGRESS_SPAN = 6
"""Serve's HTTP port and the five that ingress.py derives from it by adding one."""

# Without it Ray replaces the loopback address of a node by the machine's own, and GCS, raylet,
# workers and agents listen on every interface. The name speaks of two other systems, but the
# variable is read on all: ray/_private/ray_constants.py, ENABLE_RAY_CLUSTER.
LOOPBACK_NODE_VARIABLE = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


class ClusterProcess(Record):
    """One of Ray's own processes, told apart from a later one of the same number."""

    name: str
    pid: int
    started_s: float


class LocalCluster(Record):
    """The Ray of `penstock up`: where it listens and which processes it is."""

    cluster_id: str
    address: str
    """GCS, host:port: what `ray.init` takes."""
    dashboard_url: str
    serving_url: str
    """On loopback, for this machine."""
    tls_address: str | None = None
    """Where TLS is spoken beside it."""
    metrics_url: str
    pid: int
    token_path: str
    temp_dir: str
    ray_version: str
    started_at: datetime
    processes: tuple[ClusterProcess, ...]

    @property
    def serving_port(self) -> int:
        """The port of Serve's HTTP ingress."""
        return int(self.serving_url.rsplit(":", 1)[1])

    @property
    def grpc_address(self) -> str:
        """Where gRPC is spoken, if it is: host:port."""
        return f"{HOST}:{grpc_port(self.serving_port)}"


def cluster_id(settings: Settings) -> str:
    """Name the Ray of this storage and this user; the same after a crash, so it is found again."""
    owner = f"{os.getuid()}:{settings.storage_path}"
    return hashlib.sha256(owner.encode()).hexdigest()[:8]


def state_path(settings: Settings) -> Path:
    """Where the running Ray is written down."""
    return settings.storage_path / "cluster.json"


def temp_dir(settings: Settings) -> Path:
    """Ray's own folder; short, for the path of a Unix socket holds 107 characters at most."""
    return Path("/tmp") / f"penstock-{cluster_id(settings)}"  # noqa: S108  # made 0700 and checked


def current(settings: Settings) -> LocalCluster | None:
    """Find the Ray of `penstock up`, if it is alive; never waits."""
    cluster = _read(state_path(settings))
    if cluster is None or not all(_is_alive(process) for process in cluster.processes):
        return None
    return cluster


def up(settings: Settings) -> LocalCluster:
    """Start a Ray on this machine, or give the one that this storage already has.

    What a crash or a reboot left of an earlier one is ended and removed first.

    Raises:
        ClusterError: Ray does not come up; says where its logs are.
        BusyError: another `penstock up` or `down` has been at work for two minutes.
    """
    with exclusive(_lock_path(settings), what="starting Ray", wait_s=_LOCK_WAIT_S):
        running = current(settings)
        if running is not None:
            return running
        _clean(settings)
        return _start(settings)


def down(settings: Settings) -> bool:
    """End our Ray with everything it started, and no other; tell whether there was one."""
    with exclusive(_lock_path(settings), what="stopping Ray", wait_s=_LOCK_WAIT_S):
        return _clean(settings) > 0


def _lock_path(settings: Settings) -> Path:
    return settings.storage_path / "cluster.lock"


def _clean(settings: Settings) -> int:
    num_ended = processes.end(cluster_id(settings))
    state_path(settings).unlink(missing_ok=True)
    shutil.rmtree(temp_dir(settings), ignore_errors=True)
    return num_ended


def _read(path: Path) -> LocalCluster | None:
    try:
        return LocalCluster.model_validate_json(path.read_bytes())
    except (FileNotFoundError, ValidationError):
        # Unreadable is as good as absent: `up` finds what may still run by its mark.
        return None


def _is_alive(process: ClusterProcess) -> bool:
    started_s = processes.started_s(process.pid)
    return started_s is not None and abs(started_s - process.started_s) < _ALIVE_TOLERANCE_S


def _start(settings: Settings) -> LocalCluster:
    if settings.serving.tls.is_on:
        tls.check(settings)
        if not ports.is_free(settings.serving.tls.port):
            raise ClusterError(
                f"the port {settings.serving.tls.port} is taken",
                next_step="end what listens there, or name another one: serving.tls.port",
            )
    folder = make_private(temp_dir(settings))
    token_path = tokens.ensure(tokens.own_token_path(settings))
    taken = {settings.serving.tls.port}

    def choose(preferred: int, span: int = 1) -> int:
        port = ports.choose(preferred, span=span, taken=taken)
        taken.update(range(port, port + span))
        return port

    gcs_port = choose(settings.ray.gcs_port)
    dashboard_port = choose(settings.ray.dashboard_port)
    metrics_port = choose(settings.ray.metrics_port)
    dashboard_metrics_port = choose(metrics_port + 1)
    serving_port = choose(settings.serving.port, _INGRESS_SPAN)

    chosen = settings.model_copy(
        update={"serving": settings.serving.model_copy(update={"port": serving_port})}
    )
    environment = _environment(
        chosen, token_path, folder, gcs_port=gcs_port, dashboard_metrics_port=dashboard_metrics_port
    )
    _run_ray_start(
        [
            *(f"--node-ip-address={HOST}", f"--port={gcs_port}"),
            *(f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}"),
            *("--include-dashboard=true", "--dashboard-agent-listen-port=0"),
            *(f"--metrics-export-port={metrics_port}", f"--temp-dir={folder / _RAYS_FOLDER}"),
            f"--num-cpus={settings.ray.num_logical_cpus}",
            f"--object-store-memory={settings.ray.object_store_memory_bytes}",
        ],
        environment,
        folder,
    )
    cluster = LocalCluster(
        cluster_id=cluster_id(settings),
        address=f"{HOST}:{gcs_port}",
        dashboard_url=f"http://{HOST}:{dashboard_port}",
        serving_url=f"http://{HOST}:{serving_port}",
        tls_address=tls.address(settings),
        metrics_url=f"http://{HOST}:{metrics_port}/metrics",
        pid=0,
        token_path=str(token_path),
        temp_dir=str(folder),
        ray_version=_ray_version(),
        started_at=datetime.now(UTC),
        processes=(own := _own_processes(settings, folder)),
    ).model_copy(update={"pid": own[0].pid})
    _write(state_path(settings), cluster)
    return cluster


def make_private(folder: Path) -> Path:
    """Make a folder that only we can enter.

    Raises:
        ClusterError: somebody else has one of that name.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if folder.is_symlink() or status.st_uid != os.getuid():
        # /tmp is everybody's: somebody may have put a folder of his own there.
        raise ClusterError(
            f"{folder} belongs to somebody else", next_step="remove it, or ask its owner to"
        )
    folder.chmod(0o700)
    return folder


_NOT_FOR_OURS = (
    "PENSTOCK_PROJECT_ROOT",
    "RAY_ADDRESS",
    "RAY_API_SERVER_ADDRESS",
    "RAY_AUTH_TOKEN",
)


def _environment(
    settings: Settings,
    token_path: Path,
    folder: Path,
    *,
    gcs_port: int,
    dashboard_metrics_port: int,
) -> dict[str, str]:
    environment = inherited_environment()
    # A job reads the settings of the copy that it was sent, not those of this folder; and another
    # Ray's address or token must not leak into ours.
    for name in _NOT_FOR_OURS:
        environment.pop(name, None)
    own_bin = str(Path(sys.executable).parent)
    return environment | {
        CLUSTER_ID_VARIABLE: cluster_id(settings),
        # Ray renames its processes, and setproctitle would write over the mark above.
        "SPT_NOENV": "1",
        "PATH": f"{own_bin}{os.pathsep}{environment.get('PATH', os.defpath)}",
        "RAY_START_HOOK": "penstock.cluster.start_hook.leave_out_what_a_laptop_needs_not",
        # Where a library starts a driver of its own inside of ours (Ray Train's cleaner), it would
        # find several Rays on this machine and take none.
        "RAY_ADDRESS": f"{HOST}:{gcs_port}",
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token_path),
        LOOPBACK_NODE_VARIABLE: "0",
        WORKER_HOOK_VARIABLE: WORKER_HOOK,
        "DASHBOARD_METRIC_PORT": str(dashboard_metrics_port),
        "RAY_USAGE_STATS_ENABLED": "0",
        # Ray would start replicas and ingress at 15, behind every other process of the machine.
        "RAY_worker_niceness": "0",
        "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
        **settings.node_environment(),
        "PENSTOCK_SERVING__PORT": str(settings.serving.port),
        **serve_environment(settings, folder / "i"),
    }


def _run_ray_start(flags: list[str], environment: dict[str, str], folder: Path) -> None:
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head"]
    log = folder / "ray_start.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C in this terminal must not reach the Ray it started.
        process = subprocess.Popen(
            [*command, "--disable-usage-stats", *flags],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            cwd=folder,
        )
    try:
        code = process.wait(timeout=_START_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        code = None
    except BaseException:
        processes.end(environment[CLUSTER_ID_VARIABLE])
        raise
    if code != 0:
        processes.end(environment[CLUSTER_ID_VARIABLE])
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
        what = f"ended with {code}" if code is not None else f"took over {_START_TIMEOUT_S:.0f} s"
        raise ClusterError(
            f"`ray start` {what}: {lines[-1] if lines else 'no output'}",
            next_step=f"read {log} and {folder}/{_RAYS_FOLDER}/session_latest/logs, then try again",
        )


def run_beside(settings: Settings, module: str) -> None:
    """Run a module of the package in the background, as a part of our Ray: `down` ends it too.

    What it says goes to `<its last name>.log` in the cluster's folder.
    """
    folder = temp_dir(settings)
    environment = inherited_environment() | {CLUSTER_ID_VARIABLE: cluster_id(settings)}
    with (folder / f"{module.rpartition('.')[2]}.log").open("wb") as output:
        subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


_PROCESS_NAMES = ("gcs_server", "raylet", "dashboard")


def _own_processes(settings: Settings, folder: Path) -> tuple[ClusterProcess, ...]:
    """Find GCS, raylet and dashboard: the three without which the cluster is of no use."""
    deadline = time.monotonic() + 10.0
    while True:
        found: dict[str, ClusterProcess] = {}
        for process in processes.find(cluster_id(settings)):
            name = _role(processes.command_line(process))
            started_s = processes.started_s(process.pid)
            if name is not None and started_s is not None and name not in found:
                found[name] = ClusterProcess(name=name, pid=process.pid, started_s=started_s)
        if len(found) == len(_PROCESS_NAMES):
            return tuple(found[name] for name in _PROCESS_NAMES)
        if time.monotonic() > deadline:
            processes.end(cluster_id(settings))
            missing = ", ".join(name for name in _PROCESS_NAMES if name not in found)
            raise ClusterError(
                f"Ray started, but its {missing} is gone",
                next_step=f"read {folder}/{_RAYS_FOLDER}/session_latest/logs, then try again",
            )
        time.sleep(0.05)


def _role(command: list[str]) -> str | None:
    programs = {Path(part).name for part in command[:3]}
    if "gcs_server" in programs:
        return "gcs_server"
    if "raylet" in programs:
        return "raylet"
    return "dashboard" if "dashboard.py" in programs else None


def _ray_version() -> str:
    from importlib.metadata import version

    return version("ray")


def _write(path: Path, cluster: LocalCluster) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(cluster.model_dump_json(indent=2))
    temporary.replace(path)
