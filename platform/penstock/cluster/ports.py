"""Free ports for a Ray that shares its machine with others."""

import socket
from collections.abc import Container

from penstock.errors import ClusterError

_NUM_CANDIDATES = 400


def is_free(port: int) -> bool:
    """Tell whether nobody listens on the port, on any interface of this machine."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Without this a port of connections just closed looks taken for a minute.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
            probe.listen(1)
        except OSError:
            return False
    return True


def choose(preferred: int, *, span: int = 1, taken: Container[int] = ()) -> int:
    """Give the first port at or after `preferred` that is free, as are the `span - 1` after it.

    Args:
        preferred: where to begin.
        span: how many ports in a row are needed.
        taken: ports already promised to somebody who does not listen yet.

    Raises:
        ClusterError: none of the next few hundred ports is free.
    """
    last = min(preferred + _NUM_CANDIDATES, 65536 - span)
    for port in range(preferred, last + 1):
        if all(p not in taken and is_free(p) for p in range(port, port + span)):
            return port
    raise ClusterError(
        f"no free port from {preferred} to {last}",
        next_step="name another one in [tool.penstock], e.g. ray.dashboard_port",
    )


def answers(host: str, port: int, *, timeout_s: float = 0.5) -> bool:
    """Tell whether somebody accepts a connection there."""
    try:
        with socket.create_connection((host, port), timeout=timeout_s):
            return True
    except OSError:
        return False
