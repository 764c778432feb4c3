"""`penstock up | down | status | doctor`: the Ray that everything else runs on."""

from typing import TYPE_CHECKING

import typer

from penstock.cli.output import JsonFlag, emit, stderr
from penstock.settings import load_settings

if TYPE_CHECKING:
    from rich.console import Console

    from penstock.cluster.local import LocalCluster


def register(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(up)
    app.command()(down)


def up(as_json: JsonFlag = False) -> None:
    """Start a Ray on this machine for this project, or show the one that runs."""
    from penstock.cluster import local

    settings = load_settings()
    cluster = local.current(settings)
    if cluster is None:
        with stderr().status("starting Ray …"):
            cluster = local.up(settings)
    emit(cluster, as_json=as_json, render=lambda console: _render_cluster(console, cluster))


def _render_cluster(console: "Console", cluster: "LocalCluster") -> None:
    console.print(f"Ray {cluster.ray_version} is up")
    console.print(f"  dashboard  {cluster.dashboard_url}", highlight=False)
    console.print(f"  serving    {cluster.serving_url}  (after `penstock deploy`)", highlight=False)
    console.print(f"  metrics    {cluster.metrics_url}", highlight=False)
    console.print(f"  token      {cluster.token_path}", highlight=False)
    console.print("End it with `penstock down`.")


def down(as_json: JsonFlag = False) -> None:
    """End the Ray of this project, with all that runs on it, and no other Ray."""
    from penstock.cluster import local

    settings = load_settings()
    with stderr().status("ending Ray …"):
        was_up = local.down(settings)
    emit(
        {"was_up": was_up},
        as_json=as_json,
        render=lambda console: console.print("Ray is down" if was_up else "no Ray was up"),
    )
