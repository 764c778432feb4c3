from pathlib import Path

import pytest

from deployed import deployment, sealed
from penstock.serving import (
    application,
    deployments,
    rollout_files,
    server,
    way_back,
)
from penstock.settings import Settings
from stand_in_serve import Serve


@pytest.fixture
def serve(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Serve:
    """Version 1 serves, version 2 is there."""
    settings = Settings(project_root=tmp_path)
    fake = Serve(settings, [sealed(settings, number) for number in (1, 2)])
    deployments.record(settings, deployment(fake.versions[0]))
    monkeypatch.setattr(server, "start", lambda _: None)
    monkeypatch.setattr(server, "load_builders", lambda _: None)
    monkeypatch.setattr(server, "applications", lambda _: fake.applications)
    monkeypatch.setattr(application, "apply", fake.apply)
    monkeypatch.setattr(application, "wait_until_running", lambda *_, **__: None)
    monkeypatch.setattr(application, "wait_until_answering", lambda *_, **__: None)
    monkeypatch.setattr(rollout_files, "LOOK_S", 0.001)
    # The registry is MLflow's, whose tables take seconds to make.
    monkeypatch.setattr(way_back, "resolve", lambda _, __, number: fake.versions[number - 1])
    return fake
