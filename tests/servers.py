"""Postgres, Redis and Prometheus for tests: instances of our own, from Debian's packages.

Where the programs are missing and we are root, the packages are installed. A service that the
package brings is never touched: ours run from temporary folders on free loopback ports. That of
Prometheus would listen on every interface, so its package is unpacked and not installed.
"""

import fcntl
import json
import math
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import ProxyHandler, build_opener

import pytest

_START_TIMEOUT_S = 30.0
_PACKAGES = ("postgresql", "redis-server", "iproute2")


@dataclass(frozen=True, kw_only=True)
class Postgres:
    """A database server of the test run, with one superuser and password authentication."""

    port: int
    user: str
    password: str

    def url(self, database: str = "postgres", driver: str = "postgresql+psycopg") -> str:
        """SQLAlchemy URL of one of its databases."""
        return f"{driver}://{self.user}:{self.password}@127.0.0.1:{self.port}/{database}"

    def create(self, database: str) -> str:
        """Make a new, empty database and give its URL."""
        import psycopg

        plain = self.url(driver="postgresql")
        with psycopg.connect(plain, autocommit=True) as connection:
            connection.execute(f'CREATE DATABASE "{database}"')
        return self.url(database)


@dataclass(frozen=True, kw_only=True)
class Redis:
    """A Redis server of the test run that asks for a password."""

    port: int
    password: str

    @property
    def connection_string(self) -> str:
        """As Feast writes it."""
        return f"127.0.0.1:{self.port},password={self.password}"


@dataclass(frozen=True, kw_only=True)
class Prometheus:
    """A Prometheus of one test, and the tool that checks its files."""

    port: int
    promtool: str

    def get(self, path: str, **parameters: str) -> Any:
        """Ask its HTTP API; gives `data`, or fails with what it says."""
        url = f"http://127.0.0.1:{self.port}/api/v1/{path}?{urlencode(parameters)}"
        try:
            with build_opener(ProxyHandler({})).open(url, timeout=30) as page:
                return json.load(page)["data"]
        except HTTPError as error:
            pytest.fail(f"{parameters or path}: {error.read().decode()}")

    def query(self, query: str, *, at_s: float | None = None) -> list[dict[str, Any]]:
        """Evaluate as of a time, or now; gives the series."""
        time_of = {} if at_s is None else {"time": str(at_s)}
        return self.get("query", query=query, **time_of)["result"]

    def number(self, query: str) -> float:
        """Evaluate now what gives one number; NaN: it gives none."""
        found = self.query(query)
        assert len(found) <= 1, found
        return float(found[0]["value"][1]) if found else math.nan


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _find(program: str) -> str | None:
    # Debian keeps a server of each version outside of PATH.
    versions = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{program}"), reverse=True)
    return str(versions[0]) if versions else shutil.which(program)


def _need(*programs: str) -> dict[str, str]:
    """Find the programs, installing Debian's packages if one is missing.

    A missing server fails the test, for a test that skips itself holds nothing.
    """
    found = {name: _find(name) for name in programs}
    if not all(found.values()):
        # Tests may run in several processes, and apt takes one at a time.
        with (Path(tempfile.gettempdir()) / "penstock-apt.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not all(_find(name) for name in programs):
                _install()
        found = {name: _find(name) for name in programs}
    missing = [name for name, path in found.items() if path is None]
    if missing:
        pytest.fail(
            f"{', '.join(missing)} not found; as root: apt-get install {' '.join(_PACKAGES)}"
        )
    return {name: path for name, path in found.items() if path is not None}


def _install() -> None:
    _apt(["apt-get", "install", "-q", "-y", "--no-install-recommends", *_PACKAGES])


def _apt(*commands: list[str], folder: Path | None = None) -> None:
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        return
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    for command in (["apt-get", "update", "-q"], *commands):
        done = subprocess.run(
            command, env=quiet, cwd=folder, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            pytest.fail(f"{' '.join(command)} failed:\n{done.stdout[-500:]}{done.stderr[-1500:]}")


def _wait(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            pytest.fail(f"the server did not come up:\n{log.read_text(errors='replace')[-2000:]}")
        time.sleep(0.05)


def _stop(process: subprocess.Popen[bytes], how: signal.Signals) -> None:
    if process.poll() is None:
        process.send_signal(how)
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(timeout=10)


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """A Postgres of our own on a free loopback port."""
    programs = _need("initdb", "postgres")
    server = Postgres(port=_free_port(), user="penstock", password=secrets.token_hex(16))
    # Not under pytest's own folder: that one is private to root, and Postgres refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="penstock-pg-", dir="/tmp"))
    try:
        with _own_postgres(programs, server, folder):
            yield server
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _own_postgres:  # noqa: N801  # reads as the verb that it is
    def __init__(self, programs: dict[str, str], server: Postgres, folder: Path):
        self._programs, self._server, self._folder = programs, server, folder
        self._user = "postgres" if os.geteuid() == 0 else None

    def __enter__(self) -> None:
        folder, server = self._folder, self._server
        password = folder / "password"
        password.write_text(server.password)
        if self._user:
            for path in (folder, password):
                shutil.chown(path, self._user, self._user)
        made = subprocess.run(
            [
                *(self._programs["initdb"], "-D", folder / "data", "-U", server.user),
                *("--pwfile", password, "--auth=scram-sha-256", "--encoding=UTF8"),
                *("--no-sync", "--no-instructions"),
            ],
            capture_output=True,
            text=True,
            user=self._user,
            cwd=folder,
            check=False,
        )
        assert made.returncode == 0, made.stderr
        log = folder / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                [
                    *(self._programs["postgres"], "-D", folder / "data", "-k", folder),
                    *("-h", "127.0.0.1", "-p", str(server.port)),
                    # The data lives for one test run: nothing to save from a power cut.
                    *("-c", "fsync=off", "-c", "max_connections=60"),
                ],
                stdout=output,
                stderr=subprocess.STDOUT,
                user=self._user,
                cwd=folder,
            )
        try:
            _wait(self._answers, self._process, log)
        except BaseException:
            self.__exit__()
            raise

    def __exit__(self, *_: object) -> None:
        # SIGINT is Postgres's "fast" shutdown: it does not wait for clients to leave.
        _stop(self._process, signal.SIGINT)

    def _answers(self) -> bool:
        import psycopg

        try:
            psycopg.connect(self._server.url(driver="postgresql"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A Redis of our own on a free loopback port."""
    with running_redis(tmp_path_factory.mktemp("redis")) as (server, _):
        yield server


@contextmanager
def running_redis(
    folder: Path, *, like: Redis | None = None
) -> Iterator[tuple[Redis, subprocess.Popen[bytes]]]:
    """Start an empty Redis, with the port and password of an earlier one if it is to be like it."""
    program = _need("redis-server")["redis-server"]
    server = like or Redis(port=_free_port(), password=secrets.token_hex(16))
    folder.mkdir(exist_ok=True)
    config = folder / "redis.conf"
    # In a file: a password among the arguments would show in the list of processes.
    config.write_text(
        f"port {server.port}\nbind 127.0.0.1\nrequirepass {server.password}\n"
        f"dir {folder}\nsave ''\nappendonly no\n"
    )
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen([program, config], stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait(lambda: _redis_answers(server), process, log)
        yield server, process
    finally:
        _stop(process, signal.SIGTERM)


def _redis_answers(server: Redis) -> bool:
    import redis

    try:
        with redis.Redis(port=server.port, password=server.password) as client:
            return bool(client.ping())
    except redis.exceptions.ConnectionError:
        return False


@pytest.fixture(scope="session")
def prometheus_programs(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Debian's `prometheus` and `promtool`."""
    names = ("prometheus", "promtool")
    if not all(map(shutil.which, names)):
        folder = tmp_path_factory.mktemp("debian")
        unpack = ["sh", "-c", "dpkg-deb --extract prometheus_*.deb ."]
        _apt(["apt-get", "download", "-q", "prometheus"], unpack, folder=folder)
        found = [shutil.which(name, path=folder / "usr" / "bin") for name in names]
    else:
        found = [shutil.which(name) for name in names]
    program, tool = found
    if program is None or tool is None:
        pytest.fail("prometheus not found; as root: apt-get install prometheus")
    return program, tool


def need_iproute2() -> None:
    """Have `ip`, which makes network namespaces."""
    _need("ip")


@contextmanager
def running_prometheus(
    programs: tuple[str, str], config: Path, *, folder: Path
) -> Iterator[Prometheus]:
    """Start a Prometheus on a free loopback port; its data goes to the folder."""
    program, tool = programs
    server = Prometheus(port=_free_port(), promtool=tool)
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [
                *(program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}"),
                *(f"--web.listen-address=127.0.0.1:{server.port}", "--log.level=warn"),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
        )
    try:
        _wait(lambda: _prometheus_answers(server), process, log)
        yield server
    finally:
        _stop(process, signal.SIGTERM)


def _prometheus_answers(server: Prometheus) -> bool:
    try:
        url = f"http://127.0.0.1:{server.port}/-/ready"
        with build_opener(ProxyHandler({})).open(url, timeout=5) as page:
            return page.status == 200
    except OSError:
        return False
