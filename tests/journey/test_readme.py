"""The README's journey, run as it stands there: locally, then on Postgres and Redis."""

import json
from pathlib import Path

import pytest

from penstock.cluster import local
from projects import Project
from readme import Step, walk
from servers import Postgres, Redis

pytestmark = pytest.mark.ray


# What this run is to show grows neither with the data nor with the model.
_SMALLER = {
    "penstock sample card_fraud": "penstock sample card_fraud --customers 1000 --terminals 2000",
    "--estimator xgboost": "--estimator logistic_regression",
}


def check(steps: list[Step]) -> None:
    failed = [(s.command, s.stdout[-1000:], s.stderr[-3000:]) for s in steps if s.exit_code]
    assert failed == []
    (answer,) = [s.stdout for s in steps if s.command.startswith("curl")]
    (prediction,) = json.loads(answer)["predictions"]
    assert 0 <= prediction["score"] <= 1
    assert prediction["missing"] == []


class TestTheReadmesJourney:
    def test_in_the_local_profile(self, journey: list[Step]):
        check(journey)

    @pytest.mark.servers
    def test_on_postgres_and_redis(
        self,
        postgres: Postgres,
        redis_server: Redis,
        tmp_path: Path,
    ):
        # A second Ray: its nodes carry the servers' passwords, which never travel with a job.
        project = Project(
            storage=tmp_path / "storage",
            more={
                "PENSTOCK_PROFILE": "cluster",
                "PENSTOCK_FEATURE_STORE__REGISTRY_URL": postgres.create("journey_feast"),
                "PENSTOCK_TRACKING__URI": postgres.create("journey_mlflow"),
                "PENSTOCK_FEATURE_STORE__ONLINE_STORE": "redis",
                "PENSTOCK_FEATURE_STORE__REDIS": redis_server.connection_string,
            },
        )
        try:
            project.must("up")
            cluster = local.current(project.settings)
            assert cluster is not None
            steps = list(walk(project, cluster, tmp_path / "sample", instead=_SMALLER))
        finally:
            local.down(project.settings)
        check(steps)
        said = "".join(step.stdout + step.stderr for step in steps)
        assert postgres.password not in said
        assert redis_server.password not in said
        assert not list((tmp_path / "storage").glob("*.db"))
