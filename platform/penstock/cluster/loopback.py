"""Keeps the workers of a Ray on one machine from listening to the network."""

from collections.abc import Callable
from typing import Any

# Ray runs the function that this variable names in each worker before any other code; it is the
# same one that `worker_process_setup_hook` of a runtime env sets for the workers of one job.
WORKER_HOOK_VARIABLE = "__RAY_WORKER_PROCESS_SETUP_HOOK_ENV_VAR"
WORKER_HOOK = "penstock.cluster.loopback.bind_replicas_to_loopback"
_EVERY_INTERFACE = "[::]:"
_LOOPBACK = "127.0.0.1:"


def bind_replicas_to_loopback() -> None:
    """Let the gRPC server that each Serve replica opens listen on loopback.

    Ray 2.60 binds it to every interface, with neither token nor option
    (ray/serve/_private/replica.py, `_on_initialized`), and it unpickles what it is sent: whoever
    reaches the port runs code. Replicas import the function patched here after this has run.
    """
    from ray._common import tls_utils

    add_port: Callable[[Any, str], Any] = tls_utils.add_port_to_grpc_server

    def add_port_on_loopback(server: Any, address: str) -> Any:
        if address.startswith(_EVERY_INTERFACE):
            address = _LOOPBACK + address.removeprefix(_EVERY_INTERFACE)
        return add_port(server, address)

    tls_utils.add_port_to_grpc_server = add_port_on_loopback
