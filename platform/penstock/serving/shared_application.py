"""The application that serves many models: started with the first of them, ended with the last."""

from pathlib import Path
from types import ModuleType
from typing import Any

from penstock.errors import IntegrityError, NotFoundError, UserError
from penstock.locks import exclusive
from penstock.registry.package import verify
from penstock.serving import server, shared_targets
from penstock.serving.code import freeze_code
from penstock.serving.deployments import Deployment
from penstock.serving.shared_targets import SHARED_APP, SHARED_DEPLOYMENT
from penstock.settings import Settings

_LOCK_WAIT_S = 60.0


def aim(
    settings: Settings,
    builders: ModuleType,
    wanted: Deployment,
    *,
    trial: dict[str, Any] | None = None,
) -> None:
    """Make a deployment what the shared replicas answer with; waits for nothing.

    The replicas run the project's newest code, which all their models share.

    Args:
        settings: of the project.
        builders: the project's serve_apps/online.py.
        wanted: what should answer.
        trial: a second version beside it.

    Raises:
        NotFoundError: the project's serve_apps/ is from before there was such an application.
        IntegrityError: with the newest code another shared model would no longer be served.
    """
    from penstock.serving.model_server import ModelArguments

    arguments = ModelArguments(
        model=wanted.model,
        version=wanted.version,
        digest=wanted.digest,
        package_path=wanted.package_path,
        max_body_bytes=settings.serving.max_body_bytes,
        trial=trial,
    )
    with exclusive(_lock(settings), what="the shared application", wait_s=_LOCK_WAIT_S):
        _run(settings, builders, but=wanted.model)
        shared_targets.aim(settings, wanted.model, arguments.model_dump_json(indent=2).encode())


def remove(settings: Settings, model: str) -> None:
    """Answer for a model no more; with the last one the application ends."""
    from ray import serve

    with exclusive(_lock(settings), what="the shared application", wait_s=_LOCK_WAIT_S):
        shared_targets.forget(settings, model)
        if SHARED_APP in server.states() and not shared_targets.shared_models(settings):
            serve.delete(SHARED_APP)


def check_kind(settings: Settings, model: str, *, is_shared: bool) -> None:
    """Refuse to take what answers for a model from one kind of application to the other.

    Raises:
        UserError: it stands in the other one.
    """
    if shared_targets.is_shared(settings, model) != is_shared:
        kinds = ("replicas of its own", "the shared replicas")
        raise UserError(
            f"{model} is served by {kinds[not is_shared]}, and this version is for "
            f"{kinds[is_shared]}",
            next_step=f"penstock undeploy {model}, then deploy it: it is away for that moment",
        )


def _run(settings: Settings, builders: ModuleType, *, but: str) -> None:
    """Start the application, or renew it where it runs another code or other settings."""
    from ray import serve

    if not hasattr(builders, "build_shared"):
        raise NotFoundError(
            "the project's serve_apps/online.py has no build_shared",
            next_step="copy serve_apps/ from the template project",
        )
    wanted = builders.SharedAppArguments(
        num_replicas=settings.serving.shared_replicas,
        runtime_env=server.runtime_env(settings, str(freeze_code(settings))),
    )
    is_same_code = server.runs_on(SHARED_APP, SHARED_DEPLOYMENT, wanted.runtime_env)
    if is_same_code and wanted.num_replicas == _num_replicas():
        return
    for model in shared_targets.shared_models(settings):
        if model != but:
            _check_features(settings, model)
    target = serve.RunTarget(
        target=builders.build_shared(wanted), name=SHARED_APP, route_prefix="/v1/models"
    )
    serve.run_many([target], wait_for_applications_running=False)


def _num_replicas() -> int:
    return int(server.deployment_config(SHARED_APP, SHARED_DEPLOYMENT)["num_replicas"])


def _check_features(settings: Settings, model: str) -> None:
    """See that a shared model's features are still declared as it was trained on them."""
    from penstock.serving.arm import open_reader
    from penstock.serving.shared import find_target

    target = find_target(settings, model)
    if target is None:
        return
    try:
        open_reader(settings, verify(Path(target.package_path), settings, digest=target.digest))
    except IntegrityError as error:
        raise IntegrityError(
            f"the shared model {model} cannot be served with the code of now: {error.found}",
            next_step=f"deploy a version of {model} that can, or undeploy it",
        ) from error


def _lock(settings: Settings) -> Path:
    return settings.storage_path / "locks" / "shared-application"
