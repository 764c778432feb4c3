import io
from datetime import UTC, datetime

import pytest
from rich.console import Console

from penstock.cli.cluster import _render_cluster
from penstock.cluster.local import LocalCluster

CLUSTER = LocalCluster(
    cluster_id="1a2b3c4d",
    address="127.0.0.1:6390",
    dashboard_url="http://127.0.0.1:8265",
    serving_url="http://127.0.0.1:8020",
    metrics_url="http://127.0.0.1:8290/metrics",
    pid=1,
    token_path="/storage/ray_token",
    temp_dir="/storage/ray",
    ray_version="2.60.0",
    started_at=datetime(2026, 1, 1, tzinfo=UTC),
    processes=(),
)


@pytest.mark.parametrize("grpc", [True, False])
def test_up_shows_where_grpc_is_spoken_where_it_is(grpc: bool):
    out = io.StringIO()
    _render_cluster(Console(file=out, width=200), CLUSTER, grpc=grpc)
    # The port that Serve has, and not the one of the settings, which was taken.
    assert ("127.0.0.1:8025 (after a deploy)" in out.getvalue()) == grpc
