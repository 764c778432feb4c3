import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pytest

from bundles import write_bundle
from penstock import audit
from penstock.errors import BusyError, ClusterError, IntegrityError
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.registry.package import read_bundle, seal
from penstock.registry.versions import ModelVersion, VersionFacts
from penstock.serving import deploy as room
from penstock.serving import server
from penstock.settings import Settings

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:spills:replica.initialize_and_get_metadata() (pid=7, ip=127.0.0.1)
  File "replica.py", line 60, in __init__
penstock.errors.IntegrityError: model.onnx has not the signed SHA-256. Next: do not load it
"""


def version(path: Path, number: int = 1, digest: str = "0" * 64) -> ModelVersion:
    facts = VersionFacts(
        digest=digest,
        use_case="reservoir",
        estimator="logistic_regression",
        training_set_id="t",
        metrics={},
        agreement_rows=10_000,
        agreement_max_difference=0.0,
    )
    return ModelVersion(
        name="spills",
        version=number,
        run_id="r",
        path=str(path),
        created=datetime.now(UTC),
        facts=facts,
    )


def deployment(of: ModelVersion) -> room.Deployment:
    return room.Deployment(
        model=of.name,
        version=of.version,
        digest=of.digest,
        package_path=of.path,
        code_path="c",
        url="http://127.0.0.1:8000",
        predict_url="http://127.0.0.1:8000/v1/models/spills/predict",
        example="{}",
        deployed_at=datetime.now(UTC),
    )


@dataclass
class Serve:
    """Stands for Serve: what was asked of it, and where it fails."""

    settings: Settings
    versions: list[ModelVersion]
    applications: dict[str, dict[str, str]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)
    fails: dict[int, BaseException] = field(default_factory=dict)

    def apply(self, _settings, _builders, wanted: room.Deployment, _package) -> None:
        self.calls.append(f"apply {wanted.version}")
        if wanted.version in self.fails:
            raise self.fails[wanted.version]

    def deploy(self, number: int) -> room.Deployment:
        return room.deploy(self.settings, self.versions[number - 1], report=lambda _: None)


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Version 1 is written down as deployed; Serve has it or not, as the test says."""
    import ray.serve

    settings = Settings(project_root=tmp_path)
    versions = []
    for number in (1, 2):
        folder = settings.models_path / "spills" / str(number)
        bundle = write_bundle(tmp_path / f"bundle-{number}")
        sealed = seal(
            read_bundle(bundle, model="spills"), folder, settings, version=number, card="# card"
        )
        versions.append(version(folder, number, sealed.digest))
    fake = Serve(settings, versions)
    record = deployment(versions[0]).model_dump_json().encode()
    write_whole(room.deployment_path(settings, "spills"), record)
    monkeypatch.setattr(server, "start", lambda _: None)
    monkeypatch.setattr(server, "load_builders", lambda _: None)
    monkeypatch.setattr(server, "applications", lambda: fake.applications)
    monkeypatch.setattr(room, "_apply", fake.apply)
    monkeypatch.setattr(room, "_wait_until_running", lambda _: None)
    monkeypatch.setattr(room, "_wait_until_answering", lambda *_: None)
    monkeypatch.setattr(ray.serve, "delete", lambda name: fake.calls.append(f"delete {name}"))
    return fake


class TestDeploy:
    def test_it_gives_an_example_without_asking_a_server_that_may_be_elsewhere(self, serve: Serve):
        (row,) = json.loads(serve.deploy(2).example)["rows"]
        assert row.keys() == {"STATION", "MOMENT", "amount"}
        assert room.find_deployment(serve.settings, "spills").version == 2

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


def test_the_cause_is_picked_out_of_the_replicas_traceback():
    assert room._cause(TRACEBACK).startswith("penstock.errors.IntegrityError: model.onnx has not")


def test_without_an_error_line_the_last_line_is_the_cause():
    assert room._cause("Deploying.\nwaiting for 2 CPU\n") == "waiting for 2 CPU"
    assert room._cause("") == "no reason is known"


def test_a_package_that_is_not_what_was_registered_costs_no_replica(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    with pytest.raises(IntegrityError):
        room.deploy(settings, version(tmp_path / "models" / "spills" / "1"), report=lambda _: None)


def test_two_deploys_of_one_model_do_not_run_at_once(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    held = settings.storage_path / "locks" / "deploy-spills"
    with exclusive(held, what="deploying spills"), pytest.raises(BusyError):
        room.deploy(settings, version(tmp_path), report=lambda _: None)


def test_a_deployment_that_was_written_is_found_and_a_broken_file_is_none(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    assert room.find_deployment(settings, "spills") is None
    made = deployment(version(tmp_path))
    path = room.deployment_path(settings, "spills")
    write_whole(path, made.model_dump_json().encode())
    assert room.find_deployment(settings, "spills") == made
    path.write_text("{")
    assert room.find_deployment(settings, "spills") is None
