"""The applications that Serve runs: one per model, one for those that share, the small one at `/`.

Wiring only.

`penstock deploy` calls these builders. By hand, on a Ray that has Penstock installed:
`serve run serve_apps.online:build model=… version=… digest=… package_path=…`.
"""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field
from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import LoggingConfig

from penstock.handover import ServingPolicy
from penstock.serving.grpc_gateway import GrpcDeployment
from penstock.serving.model_server import ModelArguments
from penstock.serving.replica import MAX_REQUESTS_IN_SERVE, Replica
from penstock.serving.root import Root
from penstock.serving.shared import SharedReplica
from penstock.serving.shared_targets import SHARED_DEPLOYMENT
from penstock.serving.trial import TrialArguments

# Serve formats a line for each request at INFO, also where the access log is off.
_LOGGING = LoggingConfig(enable_access_log=False, log_level="WARNING")
_LIFE: dict[str, Any] = {
    # A redeploy starts the new replicas first: otherwise one replica means seconds of nothing.
    "max_surge_percent": 100,
    "rolling_update_percentage": 1.0,
    "max_constructor_retry_count": 2,
    # Serve must not stop a replica before its ingress has drained.
    "graceful_shutdown_timeout_s": 10.0,
    "graceful_shutdown_wait_loop_s": 0.2,
    "logging_config": _LOGGING,
}
_OF_MODELS: dict[str, Any] = {
    # A replica counts for itself and refuses in JSON; Serve's own limit stays out of reach.
    "max_ongoing_requests": MAX_REQUESTS_IN_SERVE,
    "health_check_period_s": 5.0,
    "health_check_timeout_s": 10.0,
    **_LIFE,
}


class OnlineArguments(BaseModel):
    """What one model's application is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    version: int
    digest: str
    package_path: str
    max_body_bytes: int = Field(default=1 << 20, ge=1024)
    serving: ServingPolicy = ServingPolicy()
    trial: TrialArguments | None = None
    runtime_env: dict[str, Any] = Field(default_factory=dict)


class SharedAppArguments(BaseModel):
    """What the application of the models that share replicas is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    num_replicas: int = 1
    runtime_env: dict[str, Any] = Field(default_factory=dict)


class RootArguments(BaseModel):
    """What the application at `/` is built from."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    grpc: bool = False
    runtime_env: dict[str, Any] = Field(default_factory=dict)


def build(arguments: OnlineArguments) -> Application:
    """Build the application of one model version."""
    policy = arguments.serving
    scaling: dict[str, Any] = {"num_replicas": policy.min_replicas}
    if policy.max_replicas > policy.min_replicas:
        scaling = {"autoscaling_config": _autoscaling(policy)}
    deployment = serve.deployment(
        serve.ingress()(Replica),
        name="replica",
        ray_actor_options={
            "num_cpus": policy.num_cpus_per_replica,
            "num_gpus": policy.num_gpus_per_replica,
            "runtime_env": arguments.runtime_env,
        },
        **scaling,
        **_OF_MODELS,
    )
    replica = ModelArguments(
        model=arguments.model,
        version=arguments.version,
        digest=arguments.digest,
        package_path=arguments.package_path,
        max_body_bytes=arguments.max_body_bytes,
        trial=arguments.trial,
    )
    return deployment.bind(replica.model_dump())


def _autoscaling(policy: ServingPolicy) -> AutoscalingConfig:
    """Say when there are more replicas, and when fewer."""
    return AutoscalingConfig(
        min_replicas=policy.min_replicas,
        max_replicas=policy.max_replicas,
        target_ongoing_requests=policy.target_ongoing_requests,
        upscale_delay_s=policy.upscale_delay_s,
        downscale_delay_s=policy.downscale_delay_s,
        # With Serve's 10 s and 30 s a burst would be over before its mean says that it is one.
        # A replica tells its count twice a second, a message of some hundred bytes; of the last
        # three seconds a mean is taken, so that one large request is no burst.
        metrics_interval_s=0.5,
        look_back_period_s=3.0,
    )


def build_shared(arguments: SharedAppArguments) -> Application:
    """Build the application of the models that share replicas."""
    return serve.deployment(
        serve.ingress()(SharedReplica),
        name=SHARED_DEPLOYMENT,
        num_replicas=arguments.num_replicas,
        ray_actor_options={"num_cpus": 1, "runtime_env": arguments.runtime_env},
        **_OF_MODELS,
    ).bind()


def build_root(arguments: RootArguments) -> Application:
    """Build the application at `/`, and the gRPC gateway beside it where one is wanted."""
    beside = [_build_grpc(arguments)] if arguments.grpc else []
    return serve.deployment(
        serve.ingress()(Root),
        name="root",
        max_ongoing_requests=256,
        **_LIFE,
        ray_actor_options={"num_cpus": 0.1, "runtime_env": arguments.runtime_env},
    ).bind(*beside)


def _build_grpc(arguments: RootArguments) -> Application:
    return serve.deployment(
        GrpcDeployment,
        name="grpc",
        # How long a killed one may be missed.
        health_check_period_s=1.0,
        **_LIFE,
        ray_actor_options={
            # Beside the ingress, which is reached by loopback; a head may have no CPU to give.
            "num_cpus": 0,
            "resources": {"node:__internal_head__": 0.001},
            "runtime_env": arguments.runtime_env,
        },
    ).bind()
