"""A memory for a cluster's head outside of the cluster: Ray's own tables, in a Redis.

With it the other nodes outlive their head, and a head that is started again knows them, their
actors and what Serve serves. Without it the cluster ends with its head.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from penstock.errors import ClusterError
from penstock.records import Record
from penstock.settings import Settings

# How long a node waits for its head; after Ray's 60 s it would end, its replicas with it. A node
# that ends itself helps nobody: a head that comes back starts what is missing.
RECONNECT_TIMEOUT_S = 86_400
_CONNECT_TIMEOUT_S = 5.0
_START_HOOK = "penstock.cluster.start_hook.keep_the_redis_password_unseen"


class HeadRedis(Record):
    """One Redis, as `ray.redis` names it."""

    host: str
    port: int
    username: str = ""
    password: SecretStr = SecretStr("")
    ssl: bool = False

    @property
    def address(self) -> str:
        """As Ray wants it, without a secret."""
        return f"{'rediss://' if self.ssl else ''}{self.host}:{self.port}"


def head_redis(settings: Settings) -> HeadRedis | None:
    """Read `ray.redis`; None where the cluster has no such memory."""
    given = settings.ray.redis.get_secret_value()
    if not given:
        return None
    address, *pairs = given.split(",")
    host, _, port = address.rpartition(":")
    options = dict(pair.split("=", 1) for pair in pairs)
    return HeadRedis(
        host=host,
        port=int(port),
        username=options.get("username", ""),
        password=SecretStr(options.get("password", "")),
        ssl=options.get("ssl") == "true",
    )


def environment(settings: Settings, *, is_head: bool) -> dict[str, str]:
    """Name the variables that a node starts with so that it outlives its head, or is found again.

    No secret is among them: the head's start hook reads the password from the settings.
    """
    redis = head_redis(settings)
    if redis is None:
        return {}
    every_node = {"RAY_gcs_rpc_server_reconnect_timeout_s": str(RECONNECT_TIMEOUT_S)}
    if not is_head:
        return every_node
    return {
        **every_node,
        "RAY_REDIS_ADDRESS": redis.address,
        "RAY_external_storage_namespace": settings.ray.redis_namespace,
        "RAY_START_HOOK": _START_HOOK,
    }


def check(settings: Settings) -> str | None:
    """Look at the Redis before a head starts on it.

    Returns:
        What is risky, in words; None where nothing is.

    Raises:
        ClusterError: it does not answer, or it may drop keys by itself: a head that has lost some
            of its tables is worse off than one that has lost all.
    """
    redis = head_redis(settings)
    if redis is None:
        return "ray.redis is not set: the cluster ends with its head"
    return judge(_info(redis), redis.address)


def judge(info: Mapping[str, Any], address: str) -> str | None:
    """Judge a Redis by what its INFO says; see `check`."""
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if int(info.get("maxmemory", 0)) > 0 and policy != "noeviction":
        raise ClusterError(
            f"the Redis at {address} (ray.redis) drops keys when it is full: {policy}",
            allowed="maxmemory-policy noeviction",
            next_step="set that, or give the head a Redis of its own",
        )
    if not int(info.get("aof_enabled", 0)):
        return (
            f"the Redis at {address} (ray.redis) has appendonly off: what it holds when it dies "
            "with the head is lost"
        )
    return None


def _info(redis: HeadRedis) -> dict[str, Any]:
    try:
        import redis as library
    except ImportError:
        raise ClusterError(
            "ray.redis is set, and the package redis is not installed",
            next_step="pip install -c constraints.txt -e '.[redis]'",
        ) from None
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    try:
        with library.Redis(
            host=redis.host,
            port=redis.port,
            username=redis.username or None,
            password=redis.password.get_secret_value() or None,
            ssl=redis.ssl,
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_CONNECT_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
        ) as client:
            return dict(client.info())
    except library.exceptions.RedisError as error:
        raise ClusterError(
            f"the Redis at {redis.address} (ray.redis) does not serve us: {error}",
            next_step="start that server, or mend ray.redis",
        ) from None
