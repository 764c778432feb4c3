import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import warnings
from collections.abc import Callable, Iterator
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path

import pytest

from certificates import write_certificate
from penstock.cluster import ports
from penstock.cluster.ingress import ingress_ports, serve_environment
from penstock.errors import ClusterError
from penstock.settings import Settings
from waiting import wait_for

# As Ray's own template has them for a healthy ingress.
HEALTHZ_RULES = """    acl healthcheck path -i /-/healthz
    http-request return status 200 content-type text/plain string "success" if healthcheck
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return serve_environment(Settings(project_root=tmp_path), Path(tmp_path, "i"))


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    # pytest's own folders are longer than a Unix socket's path may be.
    monkeypatch.setattr("penstock.cluster.ingress._MAX_SOCKET_PATH_BYTES", 400)


def rendered_by_serve(
    folder: Path, node: str = "node", *, port: int = 8000, replica_port: int | None = None
) -> Path:
    """The configuration that Ray's own template gives for these settings, and for one replica."""
    from jinja2 import Environment
    from ray.serve._private.haproxy import (
        BackendConfig,
        HAProxyConfig,
        ServerConfig,
        _haproxy_fmt_literal,
    )
    from ray.serve._private.haproxy_templates import HAPROXY_CONFIG_TEMPLATE
    from ray.serve.config import HTTPOptions

    config = HAProxyConfig(
        http_options=HTTPOptions(host="127.0.0.1", port=port),
        stats_port=port + 1,
        metrics_port=port + 2,
        socket_path=str(folder / node / "admin.sock"),
        error_file_path=str(folder / node / "500.http"),
        metrics_enabled=False,
    )
    backends = []
    if replica_port is not None:
        server = ServerConfig(name="replica", host="127.0.0.1", port=replica_port)
        backends.append(
            BackendConfig(name="model", path_prefix="/model", app_name="model", servers=[server])
        )
    jinja = Environment(autoescape=False)  # noqa: S701 - HAProxy's syntax is no HTML
    jinja.filters["haproxy_fmt"] = _haproxy_fmt_literal
    text = jinja.from_string(HAPROXY_CONFIG_TEMPLATE).render(
        config=config,
        backends=backends,
        healthz_rules=HEALTHZ_RULES,
        route_info={"status": 200, "routes_content_type": "text/plain", "routes_message": "{}"},
        backends_with_health_config=[
            {"backend": each, "health_config": each.build_health_check_config(config)}
            for each in backends
        ],
    )
    path = folder / node / "haproxy.cfg"
    path.parent.mkdir()
    path.write_text(text + "\n")
    return path


def test_haproxy_takes_the_mended_configuration_and_listens_on_loopback_only(
    environment: dict[str, str], tmp_path: Path
):
    wrapper = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    config = rendered_by_serve(tmp_path / "i")
    assert "bind *:" in config.read_text()
    assert "mode 666" in config.read_text()
    done = subprocess.run(
        [wrapper, "-c", "-f", config], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    text = config.read_text()
    binds = [line.split()[1] for line in text.splitlines() if line.split()[:1] == ["bind"]]
    assert len(binds) == 3
    assert all(bind.startswith("127.0.0.1:") for bind in binds), binds
    assert "mode 666" not in text
    assert "text/plain lf-string" not in text
    assert str(tmp_path / "i" / "503.http") in text


def test_haproxys_own_answers_are_json(environment: dict[str, str], tmp_path: Path):
    folder = Path(environment["RAY_SERVE_HAPROXY_BINARY_PATH"]).parent
    for name, status in (("408.http", 408), ("503.http", 503), ("500.json.http", 500)):
        head, body = (folder / name).read_bytes().split(b"\r\n\r\n")
        assert head.startswith(f"HTTP/1.1 {status} ".encode())
        assert b"Content-Length: %d\r\n" % len(body) in head + b"\r\n"
        assert body.startswith(b'{"code":"')
    assert b"Retry-After: 1" in (folder / "503.http").read_bytes()


def test_its_folder_is_private(environment: dict[str, str], tmp_path: Path):
    assert (tmp_path / "i").stat().st_mode & 0o777 == 0o700


def test_every_file_lies_in_its_folder(environment: dict[str, str], tmp_path: Path):
    paths = [value for value in environment.values() if value.startswith(os.sep)]
    assert len(paths) >= 5
    assert all(path.startswith(str(tmp_path / "i")) for path in paths)


def test_every_variable_is_one_that_this_ray_reads(environment: dict[str, str]):
    import ray.serve._private.constants as constants

    source = Path(constants.__file__).read_text("utf-8")
    assert [name for name in environment if f'"{name}"' not in source] == []


def test_no_port_is_given_twice():
    ports = ingress_ports(Settings())
    single = [ports[k] for k in ("http", "statistics", "haproxy_metrics", "fallback_http")]
    single += [ports["fallback_grpc"], ports["grpc"]]
    assert len(set(single)) == 6
    assert max(single) < ports["replicas_from"]
    assert ports["replicas_to"] <= ports["grpc_from"] < ports["grpc_to"]


def test_a_path_too_long_for_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("penstock.cluster.ingress._MAX_SOCKET_PATH_BYTES", 107)
    with pytest.raises(ClusterError, match="too long"):
        serve_environment(Settings(project_root=tmp_path), tmp_path / ("long" * 10))


class _Replica:
    """Answers health checks at once, and everything else when it is told to."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()
        self.num_at_once = self.most_at_once = 0

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                if b"/-/healthz" not in head:
                    self.num_at_once += 1
                    self.most_at_once = max(self.most_at_once, self.num_at_once)
                    await self.go_on.wait()
                    self.num_at_once -= 1
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
                await writer.drain()
        writer.close()


async def _asked(port: int, *, answers: list[bytes]) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /model/x HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answers.append(await reader.read())
    writer.close()


def test_what_a_replica_cannot_take_waits_and_beyond_that_is_refused_at_once(
    environment: dict[str, str], tmp_path: Path
):
    port, replica_port = ports.choose(31_000, span=3), ports.choose(30_000)
    config = rendered_by_serve(tmp_path / "i", port=port, replica_port=replica_port)
    wrapper = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]

    async def load() -> tuple[_Replica, list[bytes], list[bytes]]:
        replica, answers = _Replica(), list[bytes]()
        async with await asyncio.start_server(replica.answer, "127.0.0.1", replica_port):
            running = await asyncio.create_subprocess_exec(
                *(wrapper, "-db", "-f", config),
                stderr=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
            try:
                while not await asyncio.to_thread(ports.answers, "127.0.0.1", port):
                    await asyncio.sleep(0.05)
                async with asyncio.TaskGroup() as callers, asyncio.timeout(60):
                    for _ in range(256 + 512 + 40):
                        callers.create_task(_asked(port, answers=answers))
                    while len(answers) < 40 or replica.num_at_once < 256:
                        await asyncio.sleep(0.02)
                    await asyncio.sleep(0.2)
                    refused = list(answers)
                    replica.go_on.set()
            finally:
                running.kill()
                await running.wait()
        return replica, refused, answers

    replica, refused, answers = asyncio.run(load())
    assert replica.most_at_once == 256
    assert len(refused) == 40
    for each in refused:
        head, body = each.split(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert b"retry-after: 1" in head.lower()
        assert json.loads(body)["code"] == "overloaded"
    assert sum(each.startswith(b"HTTP/1.1 200 ") for each in answers) == 256 + 512


class TestTls:
    @pytest.fixture
    def door(self, tmp_path: Path) -> Iterator[Callable[..., tuple[int, str]]]:
        """A real HAProxy with TLS and nothing behind it; asks it one path."""
        certificate, key = write_certificate(tmp_path, ["localhost"])
        # Serve's five ports are in a row, and TLS is spoken on none of its ranges.
        port = ports.choose(31_000, span=3)
        tls_port = ports.choose(30_000)
        settings = Settings(
            project_root=tmp_path,
            serving={
                "port": port,
                "tls": {"certificate": str(certificate), "key": str(key), "port": tls_port},
            },
        )
        variables = serve_environment(settings, tmp_path / "i")
        config = rendered_by_serve(tmp_path / "i", port=port)
        wrapper = variables["RAY_SERVE_HAPROXY_BINARY_PATH"]
        # Twice: what is mended already stays as it is.
        for _ in range(2):
            subprocess.run([wrapper, "-c", "-f", config], capture_output=True, check=True)
        running = subprocess.Popen(
            [wrapper, "-db", "-f", config], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        trusted = ssl.create_default_context(cafile=certificate)

        def ask(path: str, *, tls: bool = True, context: ssl.SSLContext = trusted, **headers: str):
            connection = (
                HTTPSConnection("localhost", tls_port, timeout=20, context=context)
                if tls
                else HTTPConnection("localhost", port, timeout=20)
            )
            with contextlib.closing(connection):
                connection.request("GET", path, headers=headers)
                answer = connection.getresponse()
                return answer.status, answer.read().decode()

        try:
            wait_for(
                lambda: ports.answers("127.0.0.1", tls_port) and ports.answers("127.0.0.1", port)
            )
            yield ask
        finally:
            running.kill()
            running.wait()

    def test_without_a_key_nothing_is_told_and_with_one_nothing_of_serves_own(self, door):
        for path in ("/", "/healthz", "/-/healthz", "/-/HEALTHZ", "/-/routes", "/%2d/healthz"):
            status, body = door(path)
            assert (status, json.loads(body)["code"]) == (401, "unauthorized")
        for name in ("Authorization", "X-Api-Key"):
            for path in ("/-/healthz", "/-/routes", "/%2d/healthz", "/%2D/routes", "/%2d%2froutes"):
                assert door(path, **{name: "x"})[0] == 404, path
        # The health check itself still is for this machine.
        assert door("/-/healthz", tls=False) == (200, "success")

    def test_old_tls_and_strange_certificates_are_refused(self, door):
        old = ssl.create_default_context()
        old.check_hostname, old.verify_mode = False, ssl.CERT_NONE
        with warnings.catch_warnings(action="ignore"):
            old.minimum_version = ssl.TLSVersion.TLSv1
            old.maximum_version = ssl.TLSVersion.TLSv1_1
        old.set_ciphers("ALL:@SECLEVEL=0")
        with pytest.raises(ssl.SSLError, match="PROTOCOL_VERSION"):
            door("/", context=old)
        with pytest.raises(ssl.SSLCertVerificationError):
            door("/", context=ssl.create_default_context())

    def test_its_port_is_none_of_serves_own(self, tmp_path: Path):
        certificate, key = write_certificate(tmp_path)
        tls = {"certificate": str(certificate), "key": str(key), "port": 8100}
        settings = Settings(project_root=tmp_path, serving={"tls": tls})
        with pytest.raises(ClusterError, match="8100, among the ports that Serve uses"):
            serve_environment(settings, tmp_path / "i")
