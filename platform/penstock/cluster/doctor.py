"""Looks for what commonly goes wrong, and says for each finding what to do."""

import platform
import shutil
import sqlite3
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penstock.cluster import comparison, connection, local, ports, tokens
from penstock.cluster.comparison import Check, installed_versions
from penstock.cluster.connection import Endpoint
from penstock.cluster.status import gib
from penstock.errors import ClusterError, PenstockError
from penstock.logs import redact, shown_url
from penstock.settings import Settings

_BYTES_PER_GIB = 1 << 30
_LEAST_DISK_BYTES = 5 * _BYTES_PER_GIB
_LEAST_MEMORY_BYTES = 4 * _BYTES_PER_GIB
_CONNECT_TIMEOUT_S = 3.0


def diagnose(settings: Settings) -> list[Check]:
    """Run every check that makes sense now; with no Ray up, those of this machine."""
    return [_guarded(name, check) for name, check in _checks(settings)] + list(_cluster(settings))


def _checks(settings: Settings) -> Iterator[tuple[str, Callable[[], Check]]]:
    yield "python", check_python
    yield "packages", check_packages
    yield "storage", lambda: check_storage(settings.storage_path)
    yield "disk", lambda: check_disk(settings.storage_path)
    yield "memory", check_memory
    yield "shared memory", lambda: check_shared_memory(settings)
    if settings.ray.address is None:
        yield "ports", lambda: check_ports(settings)
        yield "token", lambda: check_token(tokens.own_token_path(settings))
    yield "feature registry", lambda: check_database("feature registry", settings.registry_url)
    yield "tracking", lambda: check_database("tracking", settings.tracking_uri)
    if settings.feature_store.online_store == "redis":
        yield "online store", lambda: check_redis(settings.redis_address)


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """Turn what a check itself stumbles over into a finding."""
    try:
        return check()
    except PenstockError as error:
        return Check(
            name=name, ok=False, found=redact(error.found), next_step=error.next_step or ""
        )
    except Exception as error:  # noqa: BLE001  # the doctor reports whatever it meets
        found = f"{type(error).__name__}: {error}".splitlines()[0]
        return Check(name=name, ok=False, found=redact(found), next_step="mend that, then again")


def check_python(found: tuple[int, ...] = sys.version_info[:3]) -> Check:
    """Python is one that we are tested on."""
    text = ".".join(map(str, found))
    ok = found[:2] >= (3, 11)
    return Check(name="python", ok=ok, found=text, next_step="" if ok else "use Python 3.11")


def check_packages(found: Mapping[str, str] | None = None) -> Check:
    """Every package that a job needs is installed."""
    versions = installed_versions() if found is None else found
    missing = [name for name, number in versions.items() if number == "missing"]
    if missing:
        return Check(
            name="packages",
            ok=False,
            found=f"missing: {', '.join(missing)}",
            next_step="install the project with -c constraints.txt",
        )
    return Check(name="packages", ok=True, found=f"ray {versions.get('ray', '?')} and the rest")


def check_storage(root: Path) -> Check:
    """We can write to the storage, and what is written can be read."""
    nonce = uuid.uuid4().hex
    probe = root / f".doctor-{nonce}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe.write_text(nonce)
        ok = probe.read_text() == nonce
        probe.unlink()
    except OSError as error:
        return Check(
            name="storage",
            ok=False,
            found=f"{root}: {error.strerror}",
            next_step="make it writable for this user, or set storage.root",
        )
    return Check(name="storage", ok=ok, found=f"{root} is writable")


def check_disk(root: Path, least_bytes: int = _LEAST_DISK_BYTES) -> Check:
    """The disk under the storage has room."""
    folder = next(p for p in (root, *root.parents) if p.exists())
    free = shutil.disk_usage(folder).free
    ok = free >= least_bytes
    return Check(
        name="disk",
        ok=ok,
        found=f"{gib(free)} free at {folder}",
        next_step="" if ok else f"free at least {gib(least_bytes)}, or set storage.root",
    )


def check_memory(least_bytes: int = _LEAST_MEMORY_BYTES) -> Check:
    """The machine has memory to work with."""
    import psutil

    available = psutil.virtual_memory().available
    ok = available >= least_bytes
    return Check(
        name="memory",
        ok=ok,
        found=f"{gib(available)} available",
        next_step="" if ok else f"close something: {gib(least_bytes)} should be available",
    )


def check_shared_memory(settings: Settings, folder: Path = Path("/dev/shm")) -> Check:  # noqa: S108  # Ray's object store lives there
    """Ray's object store fits into shared memory; else Ray puts it on disk, and is slow."""
    if not folder.is_dir():
        return Check(name="shared memory", ok=True, found=f"no {folder} on {platform.system()}")
    usage = shutil.disk_usage(folder)
    needed = settings.ray.object_store_memory_bytes
    ours = local.current(settings) is not None or settings.ray.address is not None
    ok = usage.total >= needed if ours else usage.free >= needed
    return Check(
        name="shared memory",
        ok=ok,
        found=f"{gib(usage.free)} of {gib(usage.total)} free at {folder}",
        next_step=""
        if ok
        else f"give it {gib(needed)} (docker: --shm-size), or lower ray.object_store_memory_bytes",
    )


def check_ports(settings: Settings) -> Check:
    """The ports that `up` prefers are free, or our own Ray has them."""
    cluster = local.current(settings)
    if cluster is not None:
        url = urlsplit(cluster.dashboard_url)
        ok = ports.answers(local.HOST, url.port or 0)
        found = f"our Ray has {cluster.address}, {url.netloc}, serving {cluster.serving_port}"
        return Check(
            name="ports",
            ok=ok,
            found=found,
            next_step="" if ok else "`penstock down`, then `penstock up`",
        )
    preferred = {
        "ray.gcs_port": settings.ray.gcs_port,
        "ray.dashboard_port": settings.ray.dashboard_port,
        "ray.metrics_port": settings.ray.metrics_port,
        "serving.port": settings.serving.port,
    }
    taken = [f"{name} {port}" for name, port in preferred.items() if not ports.is_free(port)]
    found = "all free"
    if taken:
        found = f"taken by others: {', '.join(taken)}; `penstock up` takes the next free ones"
    return Check(name="ports", ok=True, found=found)


def check_token(path: Path) -> Check:
    """The token is there and readable for us alone."""
    if not path.exists():
        return Check(name="token", ok=True, found="none yet; `penstock up` makes it")
    tokens.read(path)
    ok = tokens.is_private(path)
    return Check(
        name="token",
        ok=ok,
        found=f"{path} {'is ours alone' if ok else 'can be read by others'}",
        next_step="" if ok else f"chmod 600 {path}; `penstock down`, remove it, `penstock up`",
    )


def check_database(name: str, url: str) -> Check:
    """The database answers; its password is never shown."""
    import sqlalchemy

    try:
        parts = sqlalchemy.make_url(url)
    except (sqlalchemy.exc.ArgumentError, ValueError):
        return Check(
            name=name,
            ok=False,
            found=f"{shown_url(url)} is no URL of a database or server",
            next_step="write %40 for an @, %3A for a : in its password",
        )
    scheme = parts.drivername
    if scheme.startswith("sqlite"):
        path = Path(parts.database or "")
        if path.exists():
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                database.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return Check(name=name, ok=True, found=f"SQLite at {path}")
    if scheme.startswith("http"):
        default_port = 443 if scheme == "https" else 80
        return _check_server(name, parts.host or "", parts.port or default_port)
    needs: dict[str, Any] = {"connect_timeout": int(_CONNECT_TIMEOUT_S)}
    engine = sqlalchemy.create_engine(url, connect_args=needs if "postgresql" in scheme else {})
    where = f"{scheme} at {parts.host}:{parts.port}/{parts.database}"
    try:
        with engine.connect() as session:
            session.execute(sqlalchemy.text("SELECT 1"))
    except sqlalchemy.exc.SQLAlchemyError as error:
        reason = str(getattr(error, "orig", error)).strip().splitlines()[0]
        return Check(
            name=name,
            ok=False,
            found=redact(f"{where}: {reason}", url),
            next_step="start that server, or mend its URL and password",
        )
    finally:
        engine.dispose()
    return Check(name=name, ok=True, found=f"{where} answers")


def check_redis(address: str) -> Check:
    """Redis answers with its password; `address` is Feast's `host:port[,password=…]`."""
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    first, *options = address.split(",")
    host, _, port = first.partition(":")
    given = dict(option.split("=", 1) for option in options if "=" in option)
    try:
        with redis.Redis(
            host=host,
            port=int(port or 6379),
            password=given.get("password"),
            ssl=given.get("ssl", "false").lower() == "true",
            retry=Retry(NoBackoff(), 0),
            socket_timeout=_CONNECT_TIMEOUT_S,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
        ) as client:
            client.ping()
    except redis.exceptions.RedisError as error:
        return Check(
            name="online store",
            ok=False,
            found=f"Redis at {first}: {error}",
            next_step="start that server, or mend feature_store.redis",
        )
    return Check(name="online store", ok=True, found=f"Redis at {first} answers")


def _check_server(name: str, host: str, port: int) -> Check:
    ok = ports.answers(host, port, timeout_s=_CONNECT_TIMEOUT_S)
    return Check(
        name=name,
        ok=ok,
        found=f"{host}:{port} {'answers' if ok else 'does not answer'}",
        next_step="" if ok else "start that server, or mend its URL",
    )


def _cluster(settings: Settings) -> Iterator[Check]:
    try:
        target = connection.endpoint(settings)
        target.get("/api/version")
    except ClusterError as error:
        # Not being up is no illness of a laptop; a named Ray that is silent is one.
        ok = settings.ray.address is None and local.current(settings) is None
        yield Check(name="cluster", ok=ok, found=error.found, next_step=error.next_step or "")
        return
    yield Check(name="cluster", ok=True, found=f"Ray at {target.url} answers")
    yield _guarded("token asked for", lambda: check_token_is_asked_for(target))
    try:
        yield from comparison.compare_with_cluster(settings)
    except PenstockError as error:
        yield Check(
            name="cluster job",
            ok=False,
            found=redact(error.found),
            next_step=error.next_step or "read `penstock status` and the dashboard's logs",
        )


def check_token_is_asked_for(target: Endpoint) -> Check:
    """A stranger without the token is turned away."""
    stranger = Endpoint(url=target.url, token_path=None, is_local=target.is_local)
    try:
        stranger.get("/api/jobs/")
    except ClusterError as error:
        if "refuses" in error.found:
            return Check(name="token asked for", ok=True, found="strangers are turned away")
        raise
    return Check(
        name="token asked for",
        ok=False,
        found=f"{target.url} lets anybody run code",
        next_step="start that Ray with RAY_AUTH_MODE=token and a token on every node",
    )
