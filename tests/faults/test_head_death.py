"""The head of a cluster dies: its workers answer on, and the head that comes back knows all."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from http_requests import send
from payments import USE_CASE
from penstock.serving.http import ROOT_APP
from penstock.training.declarations import load_model
from served_versions import Callers, callers, register, shifted
from servers import Redis
from small_model import prepare, train_small
from two_nodes import TwoNodes, free_block, two_nodes
from waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("ray")]

AWAY_S = 75.0
"""More than the 60 s after which Ray's nodes give their head up by themselves."""
ROW = {
    "CUSTOMER_ID": 1,
    "TERMINAL_ID": 2,
    "TX_DATETIME": "2024-04-20T10:00:00Z",
    "TX_AMOUNT": 9.5,
}


def status_of(port: int, model: str) -> int:
    """What a request gets there; 0: nobody answers."""
    try:
        return send(port, f"/v1/models/{model}/predict", Callers.body(ROW)).status
    except OSError:
        return 0


@contextmanager
def serving_version_1(folder: Path, redis: str | None) -> Iterator[tuple[TwoNodes, str]]:
    """Two nodes whose worker answers by version 1 of two registered ones, and the model's name."""
    settings = prepare(folder / "storage")
    run = train_small(settings, "run-1")
    model = load_model(settings, USE_CASE).name
    for change in (bytes, shifted):
        register(settings, run, model, change=change)
    with two_nodes(settings, folder, first_port=free_block(), redis=redis) as nodes:
        said = nodes.head.start()
        assert ("ends with its head" in said) == (redis is None)
        nodes.worker.start()
        wait_for(lambda: len(nodes.status().get("nodes", [])) == 2)
        nodes.must("deploy", USE_CASE, "--version", "1")
        wait_for(lambda: status_of(nodes.worker_port, model) == 200)
        for path in ("/readyz", "/metrics"):
            assert send(nodes.worker_port, path, method="GET", headers={}).status == 200
        yield nodes, model


def wait_while(asked: Callers, holds: Callable[[], bool], *, timeout_s: float) -> None:
    """Wait, and end at the first request lost."""
    wait_for(lambda: asked.lost or holds(), timeout_s=timeout_s)
    assert asked.lost == []


def test_a_dead_head_costs_no_request_and_comes_back_knowing_what_is_served(
    tmp_path: Path, redis_server: Redis
):
    with serving_version_1(tmp_path, redis_server.connection_string) as (nodes, model):
        before = nodes.worker.replica_pids()
        assert before
        assert redis_server.password not in nodes.command_lines()
        with callers(nodes.worker_port, model, pause_s=0.03) as asked:
            assert nodes.head.kill() > 3
            killed_s = time.monotonic()
            wait_while(asked, lambda: time.monotonic() > killed_s + AWAY_S, timeout_s=2 * AWAY_S)
            assert nodes.run("status").code == 1
            # What a balancer asks, more often than there are threads to wait in.
            for _ in range(50):
                ready = send(nodes.worker_port, "/readyz", method="GET", headers={})
                assert (ready.status, ready.json["models"]) == (200, {model: "RUNNING"})
            page = send(nodes.worker_port, "/metrics", method="GET", headers={})
            assert b"ray_penstock_silent_nodes" in page.body
            nodes.head.start()
            both = {model: "RUNNING", ROOT_APP: "RUNNING"}
            wait_while(asked, lambda: nodes.applications() == both, timeout_s=120)
            # The head's own ingress sends to the replicas that answered all the time.
            wait_while(asked, lambda: status_of(nodes.head_port, model) == 200, timeout_s=60)
            assert nodes.worker.replica_pids() == before
            assert asked.versions() == {1}
            nodes.must("deploy", USE_CASE, "--version", "2")
            wait_while(asked, lambda: 2 in asked.versions(), timeout_s=60)
            nodes.must("deploy", USE_CASE, "--version", "1")
            time.sleep(2)
        assert asked.lost == []
        assert asked.versions() == {1, 2}
        # The same command, and none of its processes or logs shows the password.
        first, second = (c for c in nodes.head.commands_given if c[0] == "start")
        assert first == second
        assert redis_server.password not in nodes.command_lines()
        password = redis_server.password.encode()
        assert [path for path in nodes.logs() if password in path.read_bytes()] == []


def test_without_a_redis_the_cluster_ends_with_its_head(tmp_path: Path):
    with serving_version_1(tmp_path, None) as (nodes, model):
        nodes.head.kill()
        nodes.head.start()
        # The head that comes back is another cluster: the worker ends, its replicas with it.
        wait_for(lambda: status_of(nodes.worker_port, model) != 200, timeout_s=180)
        wait_for(lambda: not nodes.worker.replica_pids(), timeout_s=180)
        assert nodes.applications() == {}
