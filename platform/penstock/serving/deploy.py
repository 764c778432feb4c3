"""From a model version to a deployment that answers; the old one serves until then."""

import importlib.util
import json
import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import ValidationError

from penstock.cluster import local
from penstock.cluster.connection import connect
from penstock.errors import ClusterError, NotFoundError, PenstockError, UserError
from penstock.files import write_whole
from penstock.locks import exclusive
from penstock.records import Record
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.serving.client import example_body, open_directly
from penstock.serving.code import freeze_code
from penstock.serving.http import ROOT_APP
from penstock.settings import Settings

_START_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 30.0
_ANSWER_ATTEMPT_S = 5.0
_POLL_S = 0.05
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


def serving_url(settings: Settings) -> str:
    """Find where Serve listens: the Ray of `penstock up` may have had to take another port."""
    cluster = local.current(settings)
    if cluster is not None:
        return cluster.serving_url
    return f"http://{settings.serving.host}:{settings.serving.port}"


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
        builders = _load_builders(settings)
        code = freeze_code(settings)
        url = serving_url(settings)
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
        _connect_and_start(settings)
        # What is written down may be of a Ray that is gone: then nothing serves.
        served = version.name in _applications()
        before = find_deployment(settings, version.name) if served else None
        report(f"starting {version.name} version {version.version}")
        try:
            _apply(settings, builders, wanted, package)
            _wait_until_running(version.name)
            report("waiting for its first answers")
            _wait_until_answering(wanted)
            write_whole(
                deployment_path(settings, version.name), wanted.model_dump_json(indent=2).encode()
            )
        except BaseException as error:
            report("it did not come up; going back")
            kept = _go_back(settings, builders, version.name, before)
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
        _connect(settings)
        from ray import serve

        served = model in _applications()
        if served:
            serve.delete(model)
        deployment_path(settings, model).unlink(missing_ok=True)
        return served


def _connect(settings: Settings) -> None:
    connect(settings)
    from ray import serve  # noqa: F401 - sets its logger up, at INFO

    # Serve tells at INFO what `report` tells already.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def _connect_and_start(settings: Settings) -> None:
    _connect(settings)
    from ray import serve
    from ray.serve.config import HTTPOptions

    host, port = settings.serving.host, int(serving_url(settings).rsplit(":", 1)[1])
    serve.start(http_options=HTTPOptions(host=host, port=port))
    _check_listening(host, port)


def _check_listening(host: str, port: int) -> None:
    """Refuse a Serve that somebody started otherwise: it keeps its address, whatever we ask for.

    Raises:
        ClusterError: it listens elsewhere, perhaps to the whole network.
    """
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    running = client.http_config
    if (running.host, running.port) != (host, port):
        raise ClusterError(
            f"the Serve of this Ray listens on {running.host}:{running.port}",
            allowed=f"{host}:{port}, where the settings say that answers are given",
            next_step="end it with `serve shutdown` if nobody needs it, then deploy again",
        )


def _apply(
    settings: Settings, builders: ModuleType, wanted: Deployment, package: VerifiedPackage
) -> None:
    from ray import serve

    runtime_env = {
        "working_dir": f"local://{wanted.code_path}",
        "env_vars": settings.job_environment(),
    }
    targets = [
        serve.RunTarget(
            target=builders.build(
                builders.OnlineArguments(
                    model=wanted.model,
                    version=wanted.version,
                    digest=wanted.digest,
                    package_path=wanted.package_path,
                    max_body_bytes=settings.serving.max_body_bytes,
                    serving=package.signature.serving,
                    runtime_env=runtime_env,
                )
            ),
            name=wanted.model,
            route_prefix=f"/v1/models/{wanted.model}",
        )
    ]
    if _applications().get(ROOT_APP, {}).get("status") != "RUNNING":
        root = builders.build_root(builders.RootArguments(runtime_env=runtime_env))
        targets.append(serve.RunTarget(target=root, name=ROOT_APP, route_prefix="/"))
    serve.run_many(targets, wait_for_applications_running=False)


def _load_builders(settings: Settings) -> ModuleType:
    """Load the project's serve_apps/online.py, which need not be on the path."""
    file = settings.project_root / "serve_apps" / "online.py"
    spec = importlib.util.spec_from_file_location("penstock_serve_apps_online", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise NotFoundError(
            f"the project has no {file}", next_step="copy serve_apps/ from the template project"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _applications() -> dict[str, dict[str, Any]]:
    """Every application's status, with the first thing that went wrong in it."""
    from ray import serve

    found = {}
    for name, application in serve.status().applications.items():
        faults = [d.message for d in application.deployments.values() if d.message]
        message = "; ".join(dict.fromkeys([*faults, application.message])).strip("; ")
        found[name] = {"status": str(application.status.value), "message": message}
    return found


def _wait_until_running(model: str) -> None:
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        states = _applications()
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


def _wait_until_answering(wanted: Deployment) -> None:
    deadline_s = time.monotonic() + _ANSWER_TIMEOUT_S
    in_a_row = 0
    answer = "nothing"
    while in_a_row < _NUM_ANSWERS:
        try:
            url = f"{wanted.url}/v1/models/{wanted.model}"
            with open_directly(url, timeout_s=_ANSWER_ATTEMPT_S) as page:
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
