"""From a model version to a deployment that answers; the old one serves until then."""

import contextlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from penstock import audit
from penstock.errors import ClusterError, PenstockError, UserError
from penstock.locks import exclusive
from penstock.logs import redact
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.roles import check_may
from penstock.serving import (
    application,
    deployments,
    gpus,
    rollout_files,
    server,
    shared_application,
    shared_targets,
)
from penstock.serving.api_keys import own_token
from penstock.serving.client import example_body
from penstock.serving.code import freeze_code
from penstock.serving.deployments import Deployment, deployment_path, find_deployment
from penstock.serving.http import ROOT_APP
from penstock.settings import Settings

__all__ = ["Deployment", "deploy", "deployment_path", "find_deployment", "undeploy"]

_MAX_REASON_CHARS = 2000

Report = Callable[[str], None]


def deploy(
    settings: Settings, version: ModelVersion, *, report: Report, is_way_back: bool = False
) -> Deployment:
    """Serve a model version and wait until it, and it alone, answers.

    Args:
        settings: which Ray and which storage.
        version: what to serve.
        report: is told what happens, one line a step.
        is_way_back: the next way back leads to before this version, not forth again.

    Raises:
        BusyError: another deploy of the model is under way.
        IntegrityError: the package is not the one that was registered.
        UserError: its replicas need GPUs, and no node has so many. Or what stands is served by
            replicas of its own, and this would be by shared ones, or the other way round.
        ClusterError: the new version does not come up; the one before serves on. Or a Serve runs
            that was started to listen elsewhere.
    """
    with held(settings, version.name):
        # The replicas verify too; here a bad package costs no replica.
        package, wanted = prepare(settings, version)
        builders = server.load_builders(settings)
        server.start(settings)
        policy = package.signature.serving
        if policy.num_gpus_per_replica:
            gpus.check(version.name, policy, gpus.gpus_of_nodes())
        before = standing(settings, version.name)
        if before is not None:
            shared_application.check_kind(settings, version.name, is_shared=policy.shared)
        earlier = deployments.line(before, version.version, is_way_back=is_way_back)
        wanted = wanted.model_copy(update={"earlier": earlier})
        facts = {"digest": wanted.digest, "before": before.version if before else None}
        audit.append(settings, "deployment.start", version.label, facts)
        report(f"starting {version.name} version {version.version}")
        try:
            end_left_rollout(settings, version.name)
            application.apply(settings, builders, wanted, package)
            application.wait_until_running(settings, version.name)
            report("waiting for its first answers")
            application.wait_until_answering(wanted, own_token(settings))
            deployments.record(settings, wanted)
            audit.append(settings, "deployment.serve", version.label, facts)
        except BaseException as error:
            report("it did not come up; going back")
            kept = serve_again(settings, builders, version.name, before)
            reason = redact(str(error))[:_MAX_REASON_CHARS]
            # What goes wrong here must not hide why we go back; the start stands in the log.
            with contextlib.suppress(PenstockError, OSError):
                told = {**facts, "reason": reason, "after": kept}
                audit.append(settings, "deployment.fail", version.label, told)
            if isinstance(error, PenstockError):
                raise ClusterError(
                    f"version {version.version} of {version.name} does not come up: {error.found}",
                    next_step=f"{kept}; mend the cause and deploy again",
                ) from error
            raise
        return wanted


@contextlib.contextmanager
def held(settings: Settings, model: str) -> Iterator[None]:
    """Hold what everything that changes a model's deployment holds.

    Raises:
        BusyError: another process does.
        UserError: the name is the root application's.
        ForbiddenError: the role of whoever acts does not have it.
    """
    check_may(settings, "deploy")
    if model == ROOT_APP:
        raise UserError(f"a model named {ROOT_APP!r} can't be served: the root application has it")
    with exclusive(lock_path(settings, model), what=f"deploying {model}"):
        yield


def lock_path(settings: Settings, model: str) -> Path:
    """Where the lock is."""
    return settings.storage_path / "locks" / f"deploy-{model}"


def prepare(settings: Settings, version: ModelVersion) -> tuple[VerifiedPackage, Deployment]:
    """Verify a version and freeze the code that its replicas will run.

    Raises:
        IntegrityError: the package is not the one that was registered.
    """
    package = verify(Path(version.path), settings, digest=version.digest)
    url = server.url(settings)
    return package, Deployment(
        model=version.name,
        version=version.version,
        digest=version.digest,
        package_path=version.path,
        code_path=str(freeze_code(settings)),
        url=url,
        predict_url=f"{url}/v1/models/{version.name}/predict",
        example=example_body(package.signature.request_fields),
        deployed_at=datetime.now(UTC),
    )


def standing(settings: Settings, model: str) -> Deployment | None:
    """Find what serves: what is written down may be of a Ray that is gone, then nothing does."""
    return find_deployment(settings, model) if model in server.applications(settings) else None


def end_left_rollout(settings: Settings, model: str) -> None:
    """Mark a rollout as over whose process was killed: something else becomes the target now."""
    left = rollout_files.find(settings, model)
    if left is not None and not left.is_over:
        reason = "its process was gone, and another deployment took its place"
        over = {"phase": "over", "outcome": "back", "share_percent": 0.0, "reason": reason}
        rollout_files.write(settings, left.model_copy(update=over))
        rollout_files.clear(settings, left)


def undeploy(settings: Settings, model: str) -> bool:
    """Stop serving a model; tell whether it was served."""
    with held(settings, model):
        server.connect_driver(settings)
        end_left_rollout(settings, model)
        served = model in server.applications(settings)
        if served:
            audit.append(settings, "deployment.remove", model)
        # A target that is left of a Ray that is gone must not come back with the next one.
        if served or shared_targets.is_shared(settings, model):
            application.remove(settings, model)
        deployment_path(settings, model).unlink(missing_ok=True)
        return served


def serve_again(
    settings: Settings, builders: ModuleType, model: str, before: Deployment | None
) -> str:
    """Make the deployment that served before the target again, or remove the failed one.

    Returns:
        What is served now, in words; whatever goes wrong here must not hide why we go back.
    """
    try:
        if before is None:
            application.remove(settings, model)
            return "nothing is served"
        package = verify(Path(before.package_path), settings, digest=before.digest)
        application.apply(settings, builders, before, package)
        application.wait_until_running(settings, model)
    except Exception as error:  # noqa: BLE001  # Ray and Serve raise what they like
        return f"going back failed too ({error}), see `penstock status`"
    return f"version {before.version} serves on"
