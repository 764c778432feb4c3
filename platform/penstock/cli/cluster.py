"""`penstock up | down | status | doctor`: the Ray that everything else runs on."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

import typer

from penstock.cli.output import JsonFlag, emit, stderr

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.cluster.comparison import Check
    from penstock.cluster.local import LocalCluster
    from penstock.cluster.status import ClusterStatus
    from penstock.settings import Settings


def _settings() -> "Settings":
    from penstock.settings import load_settings

    return load_settings()


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(up)
    app.command()(status)
    app.command()(doctor)
    app.command()(down)


def up(as_json: JsonFlag = False) -> None:
    """Start a Ray on this machine for this project, or show the one that runs."""
    from penstock.cluster import local

    settings = _settings()
    cluster = local.current(settings)
    if cluster is None:
        with stderr().status("starting Ray …"):
            cluster = local.up(settings)
        # Seconds that the first deploy need not wait for.
        local.run_beside(settings, "penstock.serving.server")
    grpc = settings.serving.grpc
    emit(cluster, as_json=as_json, render=lambda out: _render_cluster(out, cluster, grpc=grpc))


def down(as_json: JsonFlag = False) -> None:
    """End the Ray of this project, with all that runs on it, and no other Ray."""
    from penstock.cluster import local

    settings = _settings()
    with stderr().status("ending Ray …"):
        was_up = local.down(settings)
    emit(
        {"was_up": was_up},
        as_json=as_json,
        render=lambda console: console.print("Ray is down" if was_up else "no Ray was up"),
    )


def status(as_json: JsonFlag = False) -> None:
    """Show the nodes, jobs and applications of the Ray that this project uses."""
    from penstock.cluster.status import status as ask

    found = ask(_settings())
    emit(found, as_json=as_json, render=lambda console: _render_status(console, found))


def doctor(as_json: JsonFlag = False) -> None:
    """Look for what commonly goes wrong; exit with 1 where something is wrong."""
    from penstock.cluster.doctor import diagnose

    checks = diagnose(_settings())
    emit(checks, as_json=as_json, render=lambda console: _render_checks(console, checks))
    if not all(check.ok for check in checks):
        raise typer.Exit(1)


def _render_cluster(console: "Console", cluster: "LocalCluster", *, grpc: bool) -> None:
    console.print(f"Ray {cluster.ray_version} is up")
    for name, value in (
        ("dashboard", cluster.dashboard_url),
        ("serving", f"{cluster.serving_url} (after a deploy)"),
        *([("grpc", f"{cluster.grpc_address} (after a deploy)")] if grpc else []),
        ("TLS", cluster.tls_address),
        ("metrics", cluster.metrics_url),
        ("token", cluster.token_path),
    ):
        if value is not None:
            console.print(f"  {name:<10} {value}", highlight=False, soft_wrap=True)
    console.print("End it with `penstock down`.")


def _render_status(console: "Console", found: "ClusterStatus") -> None:
    from rich.table import Table

    from penstock.cluster.status import gib

    console.print(f"Ray {found.ray_version}, dashboard {found.dashboard_url}", highlight=False)
    nodes = Table("node", "role", "state", "CPUs", "GPUs", "memory")
    for node in found.nodes:
        role = "head" if node.is_head else "worker"
        size = gib(node.memory_bytes)
        nodes.add_row(node.ip, role, node.state, f"{node.num_cpus:g}", f"{node.num_gpus:g}", size)
    console.print(nodes)
    if found.jobs:
        jobs = Table("job", "status", "started (UTC)", "seconds")
        for job in found.jobs:
            started = f"{job.started_at:%Y-%m-%d %H:%M:%S}"
            jobs.add_row(job.submission_id, job.status, started, f"{job.runtime_s:,.1f}")
        console.print(jobs)
    else:
        console.print("no jobs yet")
    if found.applications:
        applications = Table("application", "status", "replicas", "URL")
        for app in found.applications:
            applications.add_row(app.name, app.status, str(app.num_running_replicas), app.url)
        console.print(applications)
    else:
        console.print("no applications: `penstock deploy` makes one")
    console.print("\nFor Ray's own commands (`ray job submit`, `ray status`):")
    for name, value in found.by_hand.items():
        console.print(
            f"  export {name}={shlex.quote(value)}", highlight=False, soft_wrap=True, markup=False
        )


def _render_checks(console: "Console", checks: "Sequence[Check]") -> None:
    from rich.table import Table

    table = Table("", "check", "found", "what to do")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]no[/]"
        table.add_row(mark, check.name, check.found, check.next_step)
    console.print(table)
    num_wrong = sum(not check.ok for check in checks)
    console.print(f"{num_wrong} of {len(checks)} checks failed" if num_wrong else "all is well")
