"""Serve's own start: where it listens, and what it is built from."""

from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.config import DeploymentConfig

from penstock.errors import ClusterError, NotFoundError
from penstock.handover import ServingPolicy
from penstock.serving import server, shared_targets
from penstock.settings import Settings
from projects import REPO_ROOT


@pytest.mark.parametrize(("host", "port"), [("0.0.0.0", 8000), ("127.0.0.1", 9000)])  # noqa: S104  # what must be refused
def test_a_serve_that_listens_elsewhere_is_refused(
    monkeypatch: pytest.MonkeyPatch, host: str, port: int
):
    import ray.serve.context

    running = SimpleNamespace(http_config=SimpleNamespace(host=host, port=port))
    monkeypatch.setattr(ray.serve.context, "_get_global_client", lambda: running)
    server.check_listening(host, port)
    with pytest.raises(ClusterError, match=f"listens on {host}:{port}"):
        server.check_listening("127.0.0.1", 8000)


@pytest.mark.parametrize(
    ("there", "asked", "why"),
    [
        (None, "0.0.0.0:8443", "with no TLS. Allowed: TLS on 0.0.0.0:8443"),
        ("0.0.0.0:8443", None, "with TLS on 0.0.0.0:8443. Allowed: no TLS"),
        ("10.0.0.5:8443", "0.0.0.0:8443", "with TLS on 10.0.0.5:8443"),
    ],
)
def test_a_ray_that_was_started_for_another_address_is_refused(
    monkeypatch: pytest.MonkeyPatch, there: str | None, asked: str | None, why: str
):
    cluster = SimpleNamespace(tls_address=there)
    monkeypatch.setattr(server.local, "current", lambda _: cluster)
    monkeypatch.setattr(server.tls, "address", lambda _: asked)
    with pytest.raises(ClusterError, match=why):
        server.check_reach(Settings())
    cluster.tls_address = asked
    server.check_reach(Settings())


def test_a_project_without_serve_apps_is_told_so(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"serve_apps.online\.py"):
        server.load_builders(Settings(project_root=tmp_path))


def test_an_application_runs_on_a_code_for_callers_and_within_a_memory(
    monkeypatch: pytest.MonkeyPatch,
):
    import ray.serve.context

    folder = "local:///storage/serving/code/1a2b"
    matters = {
        "PENSTOCK_SERVING__REQUIRE_KEY": "True",
        "PENSTOCK_SERVING__JWT__ISSUER": "https://id.example",
        "PENSTOCK_SERVING__PUBLIC_NAMES": "[]",
        "PENSTOCK_SERVING__GRPC": "True",
        "PENSTOCK_SERVING__SHARED_MODEL_BYTES": "1048576",
    }
    options: dict[str, Any] = {
        "runtime_env": {
            "working_dir": folder,
            "env_vars": {**matters, "PENSTOCK_PROFILE": "local"},
        }
    }
    deployments = {
        name: {"deployment_config": {"ray_actor_options": found}}
        for name, found in (("grpc", {}), ("root", options))
    }
    client = SimpleNamespace(
        get_serve_details=lambda: {"applications": {"penstock": {"deployments": deployments}}}
    )
    monkeypatch.setattr(ray.serve.context, "_get_global_client", lambda: client)
    states = {"penstock": {"status": "RUNNING"}}
    monkeypatch.setattr(server, "states", lambda: states)

    def runs(folder: str = folder, **changes: str) -> bool:
        variables = {f"PENSTOCK_SERVING__{name}": told for name, told in changes.items()}
        wanted = {"working_dir": folder, "env_vars": {**matters, **variables}}
        return server.runs_on("penstock", "root", wanted)

    assert runs()
    assert runs("local:///elsewhere/1a2b")
    assert not runs("local:///storage/serving/code/3c4d")
    assert not runs(REQUIRE_KEY="False")
    assert not runs(SHARED_MODEL_BYTES="2097152")
    states["penstock"] = {"status": "UNHEALTHY"}
    assert not runs()
    assert not server.runs_on("penstock-shared", "shared", {})


def test_a_shared_model_has_the_state_of_the_application_that_it_shares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    settings = Settings(project_root=tmp_path)
    shared_targets.aim(settings, "gauges", b"{}")
    states = {"spills": {"status": "RUNNING"}, "penstock-shared": {"status": "DEPLOYING"}}
    monkeypatch.setattr(server, "states", lambda: dict(states))
    assert server.applications(settings) == {
        "spills": {"status": "RUNNING"},
        "gauges": {"status": "DEPLOYING"},
    }
    # What a storage says of a Ray that is gone.
    del states["penstock-shared"]
    assert server.applications(settings) == {"spills": {"status": "RUNNING"}}


class TestStartInBackground:
    def fail(self, monkeypatch: pytest.MonkeyPatch, *failures: Exception) -> list[Exception]:
        waiting = list(failures)

        def start(_settings: Settings) -> None:
            if waiting:
                raise waiting.pop(0)

        monkeypatch.setattr(server, "start", start)
        return waiting

    def test_what_was_too_slow_is_tried_again(self, monkeypatch: pytest.MonkeyPatch):
        waiting = self.fail(monkeypatch, RuntimeError("the actor died"), RuntimeError("again"))
        server.start_in_background(Settings())
        assert waiting == []

    def test_what_somebody_must_mend_is_not(self, monkeypatch: pytest.MonkeyPatch):
        waiting = self.fail(monkeypatch, ClusterError("no Ray"), RuntimeError("unreached"))
        with pytest.raises(ClusterError):
            server.start_in_background(Settings())
        assert len(waiting) == 1

    def test_at_some_time_it_gives_up(self, monkeypatch: pytest.MonkeyPatch):
        self.fail(monkeypatch, *(RuntimeError(str(n)) for n in range(9)))
        with pytest.raises(RuntimeError, match="2"):
            server.start_in_background(Settings())


@pytest.fixture(scope="module")
def builders() -> ModuleType:
    return server.load_builders(Settings(project_root=REPO_ROOT))


def built(builders: ModuleType, **policy: Any) -> Any:
    """The deployment that Serve is given."""
    arguments = builders.OnlineArguments(
        model="spills",
        version=1,
        digest="0" * 64,
        package_path="p",
        serving=ServingPolicy(**policy),
    )
    return builders.build(arguments)._bound_deployment


def config(builders: ModuleType, **policy: Any) -> DeploymentConfig:
    return built(builders, **policy)._deployment_config


@pytest.mark.parametrize("share", [0.0, 0.5, 2.0])
def test_a_replica_asks_ray_for_its_gpus(builders, share: float):
    made = built(builders, num_gpus_per_replica=share)
    assert made.ray_actor_options["num_gpus"] == share


def test_one_number_of_replicas_does_not_scale(builders):
    made = config(builders, min_replicas=2, max_replicas=2)
    assert (made.num_replicas, made.autoscaling_config) == (2, None)


def test_a_range_of_replicas_scales_as_declared_and_looks_at_seconds(builders):
    made = config(
        builders,
        max_replicas=4,
        target_ongoing_requests=8,
        upscale_delay_s=2.0,
        downscale_delay_s=90.0,
    ).autoscaling_config
    assert made is not None
    assert (made.min_replicas, made.max_replicas, made.target_ongoing_requests) == (1, 4, 8)
    assert (made.upscale_delay_s, made.downscale_delay_s) == (2.0, 90.0)
    assert made.metrics_interval_s < made.look_back_period_s <= 5
