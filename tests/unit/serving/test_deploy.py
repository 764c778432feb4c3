import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from deployed import deployment, sealed, version
from penstock import audit
from penstock.errors import BusyError, ClusterError, IntegrityError
from penstock.locks import exclusive
from penstock.registry.versions import ModelVersion
from penstock.serving import application, deployments, server, shared_targets
from penstock.serving import deploy as room
from penstock.serving.deployments import Deployment
from penstock.settings import Settings


@dataclass
class Serve:
    """Stands for Serve: what was asked of it, and where it fails."""

    settings: Settings
    versions: list[ModelVersion]
    applications: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fails: dict[int, BaseException] = field(default_factory=dict)

    def apply(self, _settings, _builders, wanted: Deployment, _package) -> None:
        self.calls.append(f"apply {wanted.version}")
        if wanted.version in self.fails:
            raise self.fails[wanted.version]

    def deploy(self, number: int) -> Deployment:
        return room.deploy(self.settings, self.versions[number - 1], report=lambda _: None)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Version 1 is written down as deployed; Serve has it or not, as the test says."""
    import ray.serve

    settings = Settings(project_root=tmp_path)
    versions = [sealed(settings, number) for number in (1, 2)]
    fake = Serve(settings, versions)
    deployments.record(settings, deployment(versions[0]))
    monkeypatch.setattr(server, "start", lambda _: None)
    monkeypatch.setattr(server, "load_builders", lambda _: None)
    monkeypatch.setattr(server, "applications", lambda _: fake.applications)
    monkeypatch.setattr(server, "states", lambda: fake.applications)
    monkeypatch.setattr(server, "connect_driver", lambda _: None)
    monkeypatch.setattr(application, "apply", fake.apply)
    monkeypatch.setattr(application, "wait_until_running", lambda *_: None)
    monkeypatch.setattr(application, "wait_until_answering", lambda *_: None)
    monkeypatch.setattr(ray.serve, "delete", lambda name: fake.calls.append(f"delete {name}"))
    return fake


class TestDeploy:
    def test_it_gives_an_example_without_asking_a_server_that_may_be_elsewhere(self, serve: Serve):
        (row,) = json.loads(serve.deploy(2).example)["rows"]
        assert row.keys() == {"STATION", "MOMENT", "amount"}
        assert room.find_deployment(serve.settings, "spills").version == 2

    def test_the_version_before_stands_behind_it_where_it_serves(self, serve: Serve):
        assert serve.deploy(2).earlier == ()
        serve.applications = {"spills": {}}
        assert serve.deploy(1).earlier == (2,)

    def test_what_it_did_is_in_the_audit_log(self, serve: Serve):
        serve.deploy(2)
        serve.fails = {1: ClusterError("no replica was ready")}
        serve.applications = {"spills": {}}
        with pytest.raises(ClusterError):
            serve.deploy(1)
        audit.verify(serve.settings)
        told = [(r.action, r.subject, r.facts["before"]) for r in audit.records(serve.settings)]
        assert told == [
            ("deployment.start", "spills 2", None),
            ("deployment.serve", "spills 2", None),
            ("deployment.start", "spills 1", 2),
            ("deployment.fail", "spills 1", 2),
        ]
        *_, last = audit.records(serve.settings)
        assert (last.facts["reason"], last.facts["after"]) == (
            "no replica was ready.",
            "version 2 serves on",
        )

    @pytest.mark.parametrize("error", [SystemExit(143), KeyboardInterrupt(), OSError("disk full")])
    def test_whatever_stops_it_the_version_before_serves_again(
        self, serve: Serve, error: BaseException
    ):
        serve.applications, serve.fails = {"spills": {}}, {2: error}
        with pytest.raises(type(error)):
            serve.deploy(2)
        assert serve.calls == ["apply 2", "apply 1"]
        assert room.find_deployment(serve.settings, "spills").version == 1

    def test_a_version_that_serve_does_not_have_is_not_gone_back_to(self, serve: Serve):
        serve.fails = {2: ClusterError("no replica was ready")}
        with pytest.raises(ClusterError, match=r"no replica was ready.*nothing is served"):
            serve.deploy(2)
        assert serve.calls == ["apply 2", "delete spills"]

    def test_where_going_back_fails_too_the_first_error_is_told(self, serve: Serve):
        serve.applications = {"spills": {}}
        serve.fails = {2: ClusterError("no replica was ready"), 1: OSError("disk full")}
        with pytest.raises(ClusterError, match=r"no replica was ready.*disk full"):
            serve.deploy(2)


def test_a_package_that_is_not_what_was_registered_costs_no_replica(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    with pytest.raises(IntegrityError):
        room.deploy(settings, version(tmp_path / "models" / "spills" / "1"), report=lambda _: None)


def test_two_deploys_of_one_model_do_not_run_at_once(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    held = settings.storage_path / "locks" / "deploy-spills"
    with exclusive(held, what="deploying spills"), pytest.raises(BusyError):
        room.deploy(settings, version(tmp_path), report=lambda _: None)


def test_what_a_ray_that_is_gone_shared_can_be_undeployed(serve: Serve):
    shared_targets.aim(serve.settings, "spills", b"{}")
    room.undeploy(serve.settings, "spills")
    assert not shared_targets.is_shared(serve.settings, "spills")
    assert serve.calls == []
