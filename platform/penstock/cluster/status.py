"""What a Ray is doing now: its nodes, jobs and applications, read from its dashboard."""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

from penstock.cluster import connection
from penstock.cluster.connection import Endpoint
from penstock.records import Record
from penstock.settings import Settings

_NUM_JOBS = 10
# The first question about applications makes the dashboard connect to its own Ray.
_TIMEOUT_S = 30.0
_BYTES_PER_GIB = 1 << 30


class NodeStatus(Record):
    """One machine of the cluster."""

    node_id: str
    ip: str
    is_head: bool
    state: str
    num_cpus: float
    num_gpus: float
    memory_bytes: int


class JobStatus(Record):
    """One submitted job."""

    submission_id: str
    status: str
    entrypoint: str
    started_at: datetime
    runtime_s: float


class ApplicationStatus(Record):
    """One application of Serve."""

    name: str
    status: str
    url: str
    num_running_replicas: int
    message: str


class ClusterStatus(Record):
    """The whole picture; jobs are the last ten, the newest first."""

    dashboard_url: str
    ray_version: str
    nodes: tuple[NodeStatus, ...]
    jobs: tuple[JobStatus, ...]
    applications: tuple[ApplicationStatus, ...]
    by_hand: dict[str, str]
    """Variables with which Ray's own commands reach it."""


def status(settings: Settings) -> ClusterStatus:
    """Ask the Ray that the settings point at.

    Raises:
        ClusterError: no Ray is up, or it does not answer.
    """
    target = connection.endpoint(settings)

    def get(path: str) -> Any:
        return target.get(path, timeout_s=_TIMEOUT_S)

    paths = ("/api/version", "/api/v0/nodes", "/api/jobs/", "/api/serve/applications/")
    with ThreadPoolExecutor(len(paths)) as pool:
        version, nodes, jobs, applications = pool.map(get, paths)
    return ClusterStatus(
        dashboard_url=target.url,
        ray_version=version["ray_version"],
        nodes=read_nodes(nodes),
        jobs=read_jobs(jobs, now=datetime.now(UTC)),
        applications=read_applications(applications, _serving_url(settings, target)),
        by_hand=connection.by_hand(settings),
    )


def _serving_url(settings: Settings, target: Endpoint) -> str:
    from penstock.cluster import local

    cluster = local.current(settings) if target.is_local else None
    if cluster is not None:
        return cluster.serving_url
    return f"http://{settings.serving.plain_host}:{settings.serving.port}"


def read_nodes(answer: Mapping[str, Any]) -> tuple[NodeStatus, ...]:
    """Read `/api/v0/nodes`; the living first, the head before all."""
    nodes = [
        NodeStatus(
            node_id=node["node_id"],
            ip=node["node_ip"],
            is_head=node["is_head_node"],
            state=node["state"],
            num_cpus=(node["resources_total"] or {}).get("CPU", 0.0),
            num_gpus=(node["resources_total"] or {}).get("GPU", 0.0),
            memory_bytes=int((node["resources_total"] or {}).get("memory", 0)),
        )
        for node in answer["data"]["result"]["result"]
    ]
    return tuple(sorted(nodes, key=lambda n: (not n.is_head, n.state != "ALIVE", n.ip)))


def read_jobs(answer: Sequence[Mapping[str, Any]], *, now: datetime) -> tuple[JobStatus, ...]:
    """Read `/api/jobs/`; drivers that nobody submitted as a job are left out."""
    submitted = [job for job in answer if job.get("submission_id")]
    submitted.sort(key=lambda job: job["start_time"] or 0, reverse=True)
    return tuple(_read_job(job, now) for job in submitted[:_NUM_JOBS])


def _read_job(job: Mapping[str, Any], now: datetime) -> JobStatus:
    started_at = datetime.fromtimestamp((job["start_time"] or 0) / 1000, UTC)
    ended_at = datetime.fromtimestamp(job["end_time"] / 1000, UTC) if job["end_time"] else now
    return JobStatus(
        submission_id=job["submission_id"],
        status=str(job["status"]),
        entrypoint=job["entrypoint"],
        started_at=started_at,
        runtime_s=round((ended_at - started_at).total_seconds(), 1),
    )


def read_applications(answer: Mapping[str, Any], serving_url: str) -> tuple[ApplicationStatus, ...]:
    """Read `/api/serve/applications/`."""
    return tuple(
        ApplicationStatus(
            name=name,
            status=app["status"],
            url=serving_url + (app["route_prefix"] or ""),
            num_running_replicas=_num_running(app["deployments"]),
            message=app["message"] or "",
        )
        for name, app in sorted(answer["applications"].items())
    )


def _num_running(deployments: Mapping[str, Any]) -> int:
    return sum(
        replica["state"] == "RUNNING"
        for deployment in deployments.values()
        for replica in deployment["replicas"]
    )


def gib(num_bytes: int) -> str:
    """Say a size in GiB."""
    return f"{num_bytes / _BYTES_PER_GIB:.1f} GiB"
