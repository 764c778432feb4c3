"""The journey, run once for all tests that look at what it left: tables, a model, a deployment."""

from pathlib import Path

import pytest

from penstock.cluster.local import LocalCluster
from projects import Project
from published import card_fraud_model, published_examples
from readme import Step, walk

__all__ = ["card_fraud_model", "published_examples"]


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the journey's simulated payments go; made by the journey's own command."""
    return tmp_path_factory.mktemp("sample")


@pytest.fixture(scope="session")
def journey(project: Project, ray_cluster: LocalCluster, sample: Path) -> list[Step]:
    """Every command of the README's journey, run in order on the one Ray of the test run."""
    return list(walk(project, ray_cluster, sample))
