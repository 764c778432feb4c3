"""What serve_apps/online.py makes of a model's serving policy."""

from types import ModuleType
from typing import Any

import pytest
from ray.serve._private.config import DeploymentConfig

from penstock.handover import ServingPolicy
from penstock.serving import server
from penstock.settings import Settings
from projects import REPO_ROOT


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
