"""What `ray start` is told beyond its flags; named to it by RAY_START_HOOK."""

from typing import Any


def leave_out_what_a_laptop_needs_not(ray_params: Any, head: bool) -> None:
    """Start neither the autoscaler nor the server of the old Ray Client.

    There is nothing to scale here, the Ray Client has a fixed port and no use for us, and each of
    the two would cost a process of 90 MB and a second of start time.
    """
    if head:
        ray_params.no_monitor = True
        ray_params.ray_client_server_port = None
