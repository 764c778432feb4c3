import os
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import grpc
import psutil
import pytest
from ray._common import tls_utils
from ray._private import ray_constants

from penstock.cluster import loopback


@pytest.fixture
def listening_address(monkeypatch):
    """Where a gRPC server of Ray's helper listens."""

    def listen(address: str) -> str:
        server = grpc.server(ThreadPoolExecutor(1))
        port = tls_utils.add_port_to_grpc_server(server, address)
        server.start()
        try:
            (found,) = {
                one.laddr.ip
                for one in psutil.Process(os.getpid()).net_connections("tcp")
                if one.status == psutil.CONN_LISTEN and one.laddr.port == port
            }
        finally:
            server.stop(None).wait()
        return found

    # So that the hook's patch is gone after the test.
    monkeypatch.setattr(tls_utils, "add_port_to_grpc_server", tls_utils.add_port_to_grpc_server)
    return listen


def test_without_the_hook_the_server_listens_everywhere_and_with_it_on_loopback(listening_address):
    assert listening_address("[::]:0") == "::"
    loopback.bind_replicas_to_loopback()
    assert listening_address("[::]:0") in ("127.0.0.1", "::ffff:127.0.0.1")
    assert listening_address("127.0.0.1:0") in ("127.0.0.1", "::ffff:127.0.0.1")


def test_ray_still_reads_the_variable_and_finds_the_hook():
    assert loopback.WORKER_HOOK_VARIABLE == ray_constants.WORKER_PROCESS_SETUP_HOOK_ENV_VAR
    module, _, name = loopback.WORKER_HOOK.rpartition(".")
    assert getattr(import_module(module), name) is loopback.bind_replicas_to_loopback
