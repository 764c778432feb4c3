"""A model that serves on the test run's Ray, and is rolled out, back and killed by the tests."""

from dataclasses import dataclass
from typing import Any

from penstock.cluster.ingress import ingress_ports
from penstock.registry.versions import ModelVersion
from penstock.serving import rollout_files, server
from penstock.serving.deploy import deploy, find_deployment
from penstock.serving.rolling import plan_rollout, roll_out
from penstock.serving.rollout import RolloutPlan
from penstock.serving.way_back import roll_back
from penstock.settings import Settings
from served_versions import (
    register,
)
from small_model import SmallRun

MODEL = "rolled"


@dataclass(frozen=True)
class Rolled:
    """A storage with a trained run, on the test run's one Ray."""

    settings: Settings
    run: SmallRun

    @property
    def port(self) -> int:
        return int(server.url(self.settings).rsplit(":", 1)[1])

    @property
    def replica_ports(self) -> set[int]:
        ports = ingress_ports(
            self.settings.model_copy(
                update={"serving": self.settings.serving.model_copy(update={"port": self.port})}
            )
        )
        return set(range(ports["replicas_from"], ports["replicas_to"]))

    @property
    def serving(self) -> int:
        """The version that is written down as deployed."""
        found = find_deployment(self.settings, MODEL)
        assert found is not None
        return found.version

    def register(self, **how: Any) -> ModelVersion:
        return register(self.settings, self.run, MODEL, **how)

    def deploy(self, version: ModelVersion) -> None:
        deploy(self.settings, version, report=lambda _: None)

    def back(self) -> int:
        return roll_back(self.settings, MODEL, reason="a test", report=lambda _: None).version

    def plan(self, version: ModelVersion, **choices: Any) -> RolloutPlan:
        choices = {"shares_percent": (30, 100), "hold_s": 1.0, "min_answers": 5, **choices}
        return plan_rollout(self.settings, version, **choices)

    def roll_out(self, version: ModelVersion, **choices: Any) -> rollout_files.Rollout:
        plan = self.plan(version, **choices)
        return roll_out(self.settings, version, plan, report=lambda _: None)


def replica_pids() -> list[int]:
    """The processes of the model's running replicas."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    return sorted(r["pid"] for r in deployment["replicas"] if r["state"] == "RUNNING")


def num_wanted() -> int:
    """How many replicas Serve aims at."""
    from ray.serve.context import _get_global_client

    application = _get_global_client().get_serve_details()["applications"][MODEL]
    (deployment,) = application["deployments"].values()
    return int(deployment["target_num_replicas"])
