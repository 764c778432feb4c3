"""What `ray start` is told beyond its flags; named to it by RAY_START_HOOK."""

from typing import Any

_PASSWORD_FLAG = "--redis_password="  # noqa: S105  # the flag's name


def leave_out_what_a_laptop_needs_not(ray_params: Any, head: bool) -> None:
    """Start neither the autoscaler nor the server of the old Ray Client.

    There is nothing to scale here, the Ray Client has a fixed port and no use for us, and each of
    the two would cost a process of 90 MB and a second of start time.
    """
    if head:
        ray_params.no_monitor = True
        ray_params.ray_client_server_port = None


def keep_the_redis_password_unseen(ray_params: Any, head: bool) -> None:
    """Give the head the password of its Redis so that no command line shows it.

    Ray 2.60 writes it on the command line of GCS, of the raylet and of every worker, for every user
    of the machine to read (ray/_private/services.py). Only GCS talks to Redis. It gets the password
    in its environment, which gflags reads when it is told to by `--fromenv`.
    """
    if not head:
        return
    from ray._private import services

    from penstock.cluster.head_memory import head_redis
    from penstock.settings import load_settings

    redis = head_redis(load_settings())
    if redis is None:
        return
    ray_params.redis_username = redis.username
    ray_params.redis_password = redis.password.get_secret_value()
    start_process, start_raylet = services.start_ray_process, services.start_raylet

    def start_process_unseen(command: list[str], *arguments: Any, **named: Any) -> Any:
        passwords = [part for part in command if part.startswith(_PASSWORD_FLAG)]
        if passwords:
            command = [part for part in command if part not in passwords]
            command.append("--fromenv=redis_password")
            told = {"FLAGS_redis_password": passwords[0].removeprefix(_PASSWORD_FLAG)}
            named["env_updates"] = {**(named.get("env_updates") or {}), **told}
        return start_process(command, *arguments, **named)

    def start_raylet_without(*arguments: Any, **named: Any) -> Any:
        return start_raylet(*arguments, **{**named, "redis_username": "", "redis_password": ""})

    services.start_ray_process = start_process_unseen
    services.start_raylet = start_raylet_without
