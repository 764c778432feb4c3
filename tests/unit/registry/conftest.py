from pathlib import Path

import pytest

from bundles import empty_tracking_database, new_project
from penstock.settings import Settings


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return empty_tracking_database(tmp_path_factory.mktemp("empty"))


@pytest.fixture
def project(tmp_path: Path, empty_database: Path) -> Settings:
    """A project of its own, with the model `spills` declared and nothing registered."""
    return new_project(tmp_path, empty_database)
