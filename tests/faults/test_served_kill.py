"""Deploys, replicas and the ingress under load, killed: no request is lost."""

import os
import random
import signal
import time

import psutil
import pytest

from cases import some_slow
from penstock.errors import UserError
from rolled import MODEL, Rolled, num_wanted, replica_pids
from served_versions import (
    callers,
)
from waiting import wait_for

pytestmark = pytest.mark.ray

NUM_MOVES = 10


class TestDeploysUnderLoad:
    @pytest.mark.slow
    def test_one_replica_is_replaced_again_and_again_and_none_is_lost(self, rolled: Rolled):
        first, second = rolled.serving, rolled.register()
        with callers(rolled.port, MODEL) as asked:
            for move in range(NUM_MOVES):
                if move % 2:
                    assert rolled.back() == first
                else:
                    rolled.deploy(second)
        assert asked.lost == []
        assert asked.versions() == {first, second.version}
        assert len(asked.answers) > 5_000


def listening_ports(pid: int) -> list[int]:
    """The ports that a process listens on."""
    found = psutil.Process(pid).net_connections(kind="tcp")
    return sorted(each.laddr.port for each in found if each.status == psutil.CONN_LISTEN)


def ingress_pid(port: int) -> int | None:
    """The process that answers at the port; None: there is none."""
    found = (
        each.pid
        for each in psutil.net_connections(kind="tcp")
        if each.status == psutil.CONN_LISTEN and each.laddr.port == port and each.pid
    )
    return next(found, None)


class TestKilledIngress:
    def test_another_one_takes_its_place(self, rolled: Rolled):
        with callers(rolled.port, MODEL) as asked:
            wait_for(lambda: asked.answers)
            killed = ingress_pid(rolled.port)
            assert killed
            os.kill(killed, signal.SIGKILL)
            # It takes some five seconds; a busy machine may take its time.
            wait_for(lambda: ingress_pid(rolled.port) not in (None, killed))
            num_before = len(asked.answers)
            # Its first answers are 503: it does not know of the model yet.
            wait_for(lambda: [a[1] for a in asked.answers[num_before:]][-20:] == [200] * 20)
        # It takes the requests along that it had in hand, and nobody is let in before the next.
        assert asked.lost
        # Until the next one knows of the model it does not say that there is none.
        assert not [lost for lost in asked.lost if lost.startswith("404")]


class TestGpus:
    def test_a_version_for_gpus_is_refused_at_once_where_ray_has_none(self, rolled: Rolled):
        old, asks = rolled.serving, rolled.register(num_gpus_per_replica=1)
        with callers(rolled.port, MODEL) as asked:
            with pytest.raises(UserError, match="this Ray has no GPU"):
                rolled.deploy(asks)
            wait_for(lambda: asked.answers)
        assert asked.lost == []
        assert asked.versions() == {rolled.serving} == {old}


class TestScaling:
    @pytest.mark.slow
    def test_a_burst_gets_a_second_replica_in_seconds_and_none_is_lost_both_ways(
        self, rolled: Rolled
    ):
        # Each request waits a little for others, so that those of a burst are in flight together.
        scales = rolled.register(
            max_replicas=2,
            target_ongoing_requests=4,
            batch_wait_s=0.1,
            downscale_delay_s=3.0,
            num_cpus_per_replica=0.1,
        )
        old = rolled.serving
        rolled.deploy(scales)
        with callers(rolled.port, MODEL, threads=1, pause_s=0.2) as always:
            wait_for(lambda: len(replica_pids()) == 1)
            took = {}
            with callers(rolled.port, MODEL, threads=16, pause_s=0) as burst:
                started_s = time.monotonic()
                # Serve's default delay alone is 30 s.
                wait_for(lambda: num_wanted() == 2, timeout_s=25)
                took["until a second one was wanted"] = time.monotonic() - started_s
                wait_for(lambda: len(replica_pids()) == 2)
                took["until it ran"] = time.monotonic() - started_s
                time.sleep(2)
            started_s = time.monotonic()
            wait_for(lambda: num_wanted() == 1)
            took["after the burst, until one was enough"] = time.monotonic() - started_s
            wait_for(lambda: len(replica_pids()) == 1)
            time.sleep(5)
        told = {what: round(s, 1) for what, s in took.items()}
        print(told, len(burst.answers))  # noqa: T201  # docs/serving.md has these numbers
        assert (burst.lost, always.lost) == ([], [])
        assert always.versions() | burst.versions() == {scales.version}
        assert rolled.back() == old


class TestKilledReplicas:
    @pytest.mark.slow
    def test_past_the_ingress_which_tries_again_its_requests_would_be_lost(self, rolled: Rolled):
        (pid,) = replica_pids()
        ports = rolled.replica_ports & set(listening_ports(pid))
        with callers(min(ports), MODEL) as asked:
            wait_for(lambda: asked.answers)
            os.kill(pid, signal.SIGKILL)
            wait_for(lambda: asked.lost, timeout_s=10)
        assert asked.lost
        wait_for(lambda: len(replica_pids()) == 1)

    @pytest.mark.parametrize("num_kills", some_slow((1, 10), in_every_run={1}))
    def test_the_other_one_answers(self, rolled: Rolled, num_kills: int):
        two = rolled.register(min_replicas=2, max_replicas=2, num_cpus_per_replica=0.1)
        old = rolled.serving
        rolled.deploy(two)
        draw = random.Random(num_kills)
        with callers(rolled.port, MODEL) as asked:
            for _ in range(num_kills):
                wait_for(lambda: len(replica_pids()) == 2)
                killed = draw.choice(replica_pids())
                os.kill(killed, signal.SIGKILL)
                wait_for(lambda dead=killed: dead not in replica_pids())
            wait_for(lambda: len(replica_pids()) == 2)
        assert asked.lost == []
        assert asked.versions() == {two.version}
        assert rolled.back() == old
