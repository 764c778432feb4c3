from datetime import UTC, datetime
from pathlib import Path

import pytest

from penstock.errors import BusyError, IntegrityError, NotFoundError
from penstock.locks import exclusive
from penstock.registry.versions import ModelVersion, VersionFacts
from penstock.serving import deploy as room
from penstock.settings import Settings

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:spills:replica.initialize_and_get_metadata() (pid=7, ip=127.0.0.1)
  File "replica.py", line 60, in __init__
penstock.errors.IntegrityError: model.onnx has not the signed SHA-256. Next: do not load it
"""


def version(path: Path) -> ModelVersion:
    facts = VersionFacts(
        digest="0" * 64,
        use_case="reservoir",
        estimator="logistic_regression",
        training_set_id="t",
        metrics={},
        agreement_rows=10_000,
        agreement_max_difference=0.0,
    )
    return ModelVersion(
        name="spills", version=1, run_id="r", path=str(path), created=datetime.now(UTC), facts=facts
    )


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


def test_a_project_without_serve_apps_is_told_so(tmp_path: Path):
    with pytest.raises(NotFoundError, match=r"serve_apps.online\.py"):
        room._load_builders(Settings(project_root=tmp_path))


def test_a_deployment_that_was_written_is_found_and_a_broken_file_is_none(tmp_path: Path):
    settings = Settings(project_root=tmp_path)
    assert room.find_deployment(settings, "spills") is None
    made = room.Deployment(
        model="spills",
        version=1,
        digest="d",
        package_path="p",
        code_path="c",
        url="http://127.0.0.1:8000",
        predict_url="http://127.0.0.1:8000/v1/models/spills/predict",
        deployed_at=datetime.now(UTC),
    )
    path = room.deployment_path(settings, "spills")
    room._write(path, made)
    assert room.find_deployment(settings, "spills") == made
    path.write_text("{")
    assert room.find_deployment(settings, "spills") is None
