"""Somebody on another machine tries every port: what answers, and to whom."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest

from certificates import write_certificate
from issuer import AUDIENCE, ISSUER, jwk, running_issuer, token
from outsider import Outsider, outsider, why_not
from payments import end_of_day
from penstock.cluster import local, processes
from penstock.cluster.local import LocalCluster
from penstock.errors import ClusterError
from penstock.serving import api_keys
from penstock.serving.deploy import deploy
from penstock.settings import Settings
from projects import Project
from servers import need_iproute2
from small_model import prepare, seal_as, train_small
from waiting import wait_for

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(why_not() is not None, reason=str(why_not())),
]

_START_S = 240.0
MODEL = "seen_from_outside"
NAME = "models.example"
ROW = {"CUSTOMER_ID": 1, "TERMINAL_ID": 2, "TX_DATETIME": "2024-04-20T10:00:00Z", "TX_AMOUNT": 12.5}
BODY = json.dumps({"rows": [ROW]})
PREDICT = f"/v1/models/{MODEL}/predict"
# Also the pages of Serve itself, and spellings of them that only a decoder knows.
SERVES_OWN = ("/-/healthz", "/-/routes", "/%2d/healthz", "/%2D/routes", "//-/healthz", "/-/HEALTHZ")
PATHS = (
    *(PREDICT, f"/v1/models/{MODEL}", f"/v2/models/{MODEL}/infer", "/v1/feedback", "/v1/models"),
    *("/", "/healthz", "/readyz", "/metrics", "/nowhere", "/stats", "/v2", "/api/jobs/", "/v1"),
    *SERVES_OWN,
)
BAD_KEYS = ({"X-Api-Key": "a.b"}, {"Authorization": "Bearer a.b.c"}, {"Authorization": ""})


@pytest.fixture(scope="module")
def stranger() -> Iterator[Outsider]:
    need_iproute2()
    try:
        with outsider() as made:
            yield made
    except PermissionError as error:
        pytest.skip(f"no network namespace here: {error}")


def ports_of(cluster_id: str) -> set[int]:
    """Every TCP port on which a process of this cluster listens."""
    ours = {process.pid for process in processes.find(cluster_id)}
    return {
        one.laddr.port
        for one in psutil.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN and one.pid in ours
    }


def found_of(cluster_id: str, stranger: Outsider) -> set[int]:
    """The ports of this cluster that the stranger finds; others' processes are not our business."""
    ours = ports_of(cluster_id)
    # Ray, HAProxy and replicas: fewer would mean that we look past them.
    assert len(ours) >= 12
    found = stranger.scan()
    return found & (ours | ports_of(cluster_id))


@pytest.mark.ray
def test_as_it_comes_no_port_answers(ray_cluster: LocalCluster, stranger: Outsider):
    wait_for(
        lambda: ray_cluster.serving_port in ports_of(ray_cluster.cluster_id), timeout_s=_START_S
    )
    assert found_of(ray_cluster.cluster_id, stranger) == set()


def test_a_port_that_is_open_is_found(stranger: Outsider):
    with socket.create_server((stranger.host, 0)) as server:
        port = server.getsockname()[1]
        assert port in stranger.scan()
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert stranger.scan([server.getsockname()[1]]) == set()


@dataclass(frozen=True)
class Public:
    """A Ray of its own that is served to others, with a model."""

    settings: Settings
    cluster: LocalCluster
    port: int
    ca: str


@pytest.fixture(scope="module")
def public(stranger: Outsider, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Public]:
    folder = tmp_path_factory.mktemp("public")
    certificate, key = write_certificate(folder, [NAME, stranger.host])
    with running_issuer(jwk("a")) as issuer, socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
        held.close()
        jwt = {"issuer": ISSUER, "audience": AUDIENCE, "jwks_url": issuer.url}
        tls = {"certificate": certificate, "key": key, "port": port}
        project = Project(
            storage=folder / "storage",
            more={
                "PENSTOCK_SERVING__HOST": "0.0.0.0",  # noqa: S104 - what is tested
                "PENSTOCK_SERVING__REQUIRE_KEY": "true",
                "PENSTOCK_SERVING__PUBLIC_NAMES": json.dumps([NAME, stranger.host]),
                **{f"PENSTOCK_SERVING__TLS__{k.upper()}": str(v) for k, v in tls.items()},
                **{f"PENSTOCK_SERVING__JWT__{k.upper()}": v for k, v in jwt.items()},
            },
        )
        mine = project.settings
        prepare(project.storage)
        version = seal_as(mine, train_small(mine, "run-1"), MODEL)
        try:
            project.must("up")
            cluster = local.current(mine)
            assert cluster is not None
            _materialize(mine)
            deploy(mine, version, report=lambda _: None)
            yield Public(mine, cluster, port, str(certificate))
        finally:
            import ray

            ray.shutdown()
            local.down(mine)


def _materialize(settings: Settings) -> None:
    from penstock.features.materialize import materialize
    from small_model import USE_CASE

    materialize(settings, USE_CASE, until=end_of_day(60))


def test_only_the_port_of_tls_is_found(public: Public, stranger: Outsider):
    assert found_of(public.cluster.cluster_id, stranger) == {public.port}


def test_without_a_key_every_path_is_a_401(public: Public, stranger: Outsider):
    for name in (NAME, stranger.host, "127.0.0.1"):
        answers = stranger.ask(public.port, PATHS, ca=public.ca, name=name)
        assert answers == dict.fromkeys(PATHS, 401)
    answers = stranger.ask(public.port, PATHS, ca=public.ca, name=NAME, body=BODY)
    assert answers == dict.fromkeys(PATHS, 401)


@pytest.mark.parametrize("headers", BAD_KEYS)
def test_with_a_bad_key_nothing_is_answered(public: Public, stranger: Outsider, headers: dict):
    answers = stranger.ask(public.port, PATHS, ca=public.ca, name=NAME, headers=headers)
    pages = {path: 404 for path in SERVES_OWN if path.lower().startswith(("/-/", "/%2d/"))}
    assert answers == {path: pages.get(path, 401) for path in PATHS}


def test_another_name_is_refused(public: Public, stranger: Outsider):
    _, key = api_keys.create(public.settings, "tests", ["admin"], valid_for=None)
    headers = {"X-Api-Key": key}
    answers = stranger.ask(public.port, ["/healthz"], ca=public.ca, name="evil", headers=headers)
    assert answers == {"/healthz": 421}


def test_with_a_key_or_a_token_it_answers(public: Public, stranger: Outsider):
    _, key = api_keys.create(public.settings, "tests", [f"predict:{MODEL}"], valid_for=None)
    bearer = token(scope=f"predict:{MODEL}")
    for secret in (key, bearer):
        headers = {"Authorization": f"Bearer {secret}"}

        def ask(paths: list[str], body: str | None = None, sent: dict = headers) -> list[int]:
            found = stranger.ask(
                public.port, paths, ca=public.ca, name=NAME, headers=sent, body=body
            )
            return list(found.values())

        assert ask([PREDICT], BODY) == [200]
        assert ask(["/healthz", "/metrics", "/-/routes"]) == [403, 403, 404]


def test_plain_http_is_not_spoken_there(public: Public):
    from http_requests import send_raw

    said = send_raw(public.port, b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert not said.startswith(b"HTTP/")


def test_a_project_that_asks_for_no_key_does_not_open_it(public: Public):
    from penstock.serving import server

    serving = public.settings.serving.model_copy(
        update={
            "require_key": False,
            "host": "127.0.0.1",
            "tls": type(public.settings.serving.tls)(),
        }
    )
    with pytest.raises(ClusterError, match="was started with TLS"):
        server.start(public.settings.model_copy(update={"serving": serving}))


def test_our_own_client_speaks_to_it(public: Public, stranger: Outsider):
    from penstock.serving.client import predict

    _, key = api_keys.create(public.settings, "tests", ["predict:*"], valid_for=None)
    url = f"https://{stranger.host}:{public.port}"
    assert predict(url, MODEL, json.dumps(ROW), token=key, ca=public.ca)["model"] == MODEL
    with pytest.raises(ClusterError, match="CERTIFICATE_VERIFY_FAILED"):
        predict(url, MODEL, json.dumps(ROW), token=key)


def test_without_the_mended_configuration_more_is_found(public: Public, stranger: Outsider):
    """The last: it leaves the ingress as Ray would have it."""
    script = Path(public.cluster.temp_dir) / "i" / "mend.sed"
    kept = [
        line
        for line in script.read_text().splitlines(keepends=True)
        if not line.startswith("s/^\\( *bind") and "ssl_fc" not in line
    ]
    # The rule before those of `ssl_fc` was not the last of its text.
    script.write_text("".join(kept).rstrip().removesuffix("\\") + "\n")
    haproxies = [
        process
        for process in processes.find(public.cluster.cluster_id)
        if "haproxy" in process.name()
    ]
    assert haproxies
    for process in haproxies:
        process.kill()
    gone = {process.pid for process in haproxies}

    def is_back() -> bool:
        ours = {p.pid for p in processes.find(public.cluster.cluster_id)} - gone
        return any(
            one.laddr.port == public.port and one.status == psutil.CONN_LISTEN and one.pid in ours
            for one in psutil.net_connections("tcp")
        )

    wait_for(is_back, timeout_s=_START_S)
    found = found_of(public.cluster.cluster_id, stranger)
    statistics = public.cluster.serving_port + 1
    assert found >= {public.port, statistics, statistics + 1}
    wait_for(
        lambda: (
            stranger.ask(public.port, ["/-/healthz"], ca=public.ca, name=NAME)
            == {"/-/healthz": 200}
        )
    )
