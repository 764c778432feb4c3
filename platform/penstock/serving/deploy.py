"""From a model version to a deployment that answers; the old one serves until then."""

import contextlib
import json
import time
import urllib.request
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

from pydantic import ValidationError

from penstock import audit
from penstock.errors import ClusterError, PenstockError, UserError
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.logs import redact
from penstock.records import Record
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.serving import server
from penstock.serving.api_keys import own_token
from penstock.serving.client import example_body, key_header, open_directly
from penstock.serving.code import freeze_code
from penstock.serving.http import ROOT_APP
from penstock.settings import Settings

_START_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 30.0
_ANSWER_ATTEMPT_S = 5.0
_POLL_S = 0.05
_MAX_REASON_CHARS = 2000
_NUM_ANSWERS = 3
"""So many answers of the new version in a row show that the old one gets no more requests."""

Report = Callable[[str], None]


class Deployment(Record):
    """A model version that answers requests; the version is its left neighbour."""

    model: str
    version: int
    digest: str
    package_path: str
    code_path: str
    url: str
    predict_url: str
    example: str
    """A request body with one row of made-up values, to start from."""
    deployed_at: datetime


def deployment_path(settings: Settings, model: str) -> Path:
    """Where the deployment that stands is written down."""
    return settings.storage_path / "serving" / f"{model}.json"


def find_deployment(settings: Settings, model: str) -> Deployment | None:
    """Read the last deployment that came to answer; None where there is none."""
    try:
        return Deployment.model_validate_json(deployment_path(settings, model).read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def deploy(settings: Settings, version: ModelVersion, *, report: Report) -> Deployment:
    """Serve a model version and wait until it, and it alone, answers.

    Args:
        settings: which Ray and which storage.
        version: what to serve.
        report: is told what happens, one line a step.

    Raises:
        BusyError: another deploy of the model is under way.
        IntegrityError: the package is not the one that was registered.
        ClusterError: the new version does not come up; the one before serves on. Or a Serve runs
            that was started to listen elsewhere.
    """
    if version.name == ROOT_APP:
        raise UserError(f"a model named {ROOT_APP!r} can't be served: the root application has it")
    lock = settings.storage_path / "locks" / f"deploy-{version.name}"
    with exclusive(lock, what=f"deploying {version.name}"):
        # The replicas verify too; here a bad package costs no replica.
        package = verify(Path(version.path), settings, digest=version.digest)
        builders = server.load_builders(settings)
        code = freeze_code(settings)
        url = server.url(settings)
        wanted = Deployment(
            model=version.name,
            version=version.version,
            digest=version.digest,
            package_path=version.path,
            code_path=str(code),
            url=url,
            predict_url=f"{url}/v1/models/{version.name}/predict",
            example=example_body(package.signature.request_fields),
            deployed_at=datetime.now(UTC),
        )
        server.start(settings)
        # What is written down may be of a Ray that is gone: then nothing serves.
        served = version.name in server.applications()
        before = find_deployment(settings, version.name) if served else None
        facts = {"digest": wanted.digest, "before": before.version if before else None}
        audit.append(settings, "deployment.start", version.label, facts)
        report(f"starting {version.name} version {version.version}")
        try:
            _apply(settings, builders, wanted, package)
            _wait_until_running(version.name)
            report("waiting for its first answers")
            _wait_until_answering(wanted, own_token(settings))
            write_whole(
                deployment_path(settings, version.name), wanted.model_dump_json(indent=2).encode()
            )
            audit.append(settings, "deployment.serve", version.label, facts)
        except BaseException as error:
            report("it did not come up; going back")
            kept = _go_back(settings, builders, version.name, before)
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


def undeploy(settings: Settings, model: str) -> bool:
    """Stop serving a model; tell whether it was served."""
    with exclusive(settings.storage_path / "locks" / f"deploy-{model}", what=f"deploying {model}"):
        server.connect_driver(settings)
        from ray import serve

        served = model in server.applications()
        if served:
            audit.append(settings, "deployment.remove", model)
            serve.delete(model)
        deployment_path(settings, model).unlink(missing_ok=True)
        return served


def _apply(
    settings: Settings, builders: ModuleType, wanted: Deployment, package: VerifiedPackage
) -> None:
    from ray import serve

    arguments = builders.OnlineArguments(
        model=wanted.model,
        version=wanted.version,
        digest=wanted.digest,
        package_path=wanted.package_path,
        max_body_bytes=settings.serving.max_body_bytes,
        serving=package.signature.serving,
        runtime_env=server.runtime_env(settings, wanted.code_path),
    )
    target = serve.RunTarget(
        target=builders.build(arguments),
        name=wanted.model,
        route_prefix=f"/v1/models/{wanted.model}",
    )
    serve.run_many([target], wait_for_applications_running=False)


def _wait_until_running(model: str) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        states = server.applications()
        for name in (model, ROOT_APP):
            state = states.get(name, {"status": "NOT_STARTED", "message": ""})
            if state["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ClusterError(_cause(state["message"]))
        if all(states.get(name, {}).get("status") == "RUNNING" for name in (model, ROOT_APP)):
            return
        if time.monotonic() > deadline_s:
            raise ClusterError(
                f"no replica was ready after {_START_TIMEOUT_S:.0f} s: "
                f"{_cause(states.get(model, {}).get('message', ''))}"
            )
        time.sleep(_POLL_S)


def _cause(message: str) -> str:
    """Pick what a person needs from Serve's message, which holds the replica's whole traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":", 1)[0] and ":" in line]
    return errors[-1] if errors else (lines[-1] if lines else "no reason is known")


def _wait_until_answering(wanted: Deployment, token: str) -> None:
    deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
    in_a_row = 0
    answer = "nothing"
    while in_a_row < _NUM_ANSWERS:
        try:
            url = f"{wanted.url}/v1/models/{wanted.model}"
            request = urllib.request.Request(url, headers=key_header(token))  # noqa: S310 - ours
            with open_directly(request, timeout_s=_ANSWER_ATTEMPT_S) as page:
                document = json.load(page)
            answer = f"version {document.get('version')}"
            in_a_row = in_a_row + 1 if document.get("digest") == wanted.digest else 0
        except (OSError, ValueError) as error:
            in_a_row = 0
            answer = str(error)
        if time.monotonic() > deadline_s:
            raise ClusterError(f"it runs, but {wanted.url} answers with {answer}")
        time.sleep(_POLL_S)


def _go_back(
    settings: Settings, builders: ModuleType, model: str, before: Deployment | None
) -> str:
    """Make the deployment that served before the target again, or remove the failed one.

    Returns:
        What is served now, in words; whatever goes wrong here must not hide why we go back.
    """
    from ray import serve

    try:
        if before is None:
            serve.delete(model)
            return "nothing is served"
        package = verify(Path(before.package_path), settings, digest=before.digest)
        _apply(settings, builders, before, package)
        _wait_until_running(model)
    except Exception as error:  # noqa: BLE001  # Ray and Serve raise what they like
        return f"going back failed too ({error}), see `penstock status`"
    return f"version {before.version} serves on"
