"""A model's application on Serve: made the target, and waited for until it answers."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from types import ModuleType
from typing import Any

from penstock.errors import ClusterError
from penstock.registry.package import VerifiedPackage
from penstock.serving import server, shared_application, shared_targets
from penstock.serving.client import key_header, open_directly
from penstock.serving.deployments import Deployment
from penstock.serving.http import NOT_LOADED, ROOT_APP
from penstock.settings import Settings

_START_TIMEOUT_S = 180.0
_ANSWER_TIMEOUT_S = 30.0
_ANSWER_ATTEMPT_S = 5.0
_POLL_S = 0.05
_NUM_ANSWERS = 3
"""So many answers of the new version in a row show that the old one gets no more requests."""


def apply(
    settings: Settings,
    builders: ModuleType,
    wanted: Deployment,
    package: VerifiedPackage,
    *,
    trial: dict[str, Any] | None = None,
) -> None:
    """Make a deployment what Serve aims at; waits for nothing.

    Args:
        settings: of the project.
        builders: the project's serve_apps/online.py.
        wanted: what should answer.
        package: its version's, verified: it says how many replicas there are.
        trial: a second version in every replica; see `replica.TrialArguments`.
    """
    from ray import serve

    if package.signature.serving.shared:
        shared_application.aim(settings, builders, wanted, trial=trial)
        return
    # One that is left is of a Ray that is gone.
    shared_targets.forget(settings, wanted.model)
    arguments = builders.OnlineArguments(
        model=wanted.model,
        version=wanted.version,
        digest=wanted.digest,
        package_path=wanted.package_path,
        max_body_bytes=settings.serving.max_body_bytes,
        serving=package.signature.serving,
        trial=trial,
        runtime_env=server.runtime_env(settings, wanted.code_path),
    )
    target = serve.RunTarget(
        target=builders.build(arguments),
        name=wanted.model,
        route_prefix=f"/v1/models/{wanted.model}",
    )
    serve.run_many([target], wait_for_applications_running=False)


def remove(settings: Settings, model: str) -> None:
    """Make nothing what answers for a model."""
    from ray import serve

    if shared_targets.is_shared(settings, model):
        shared_application.remove(settings, model)
    else:
        serve.delete(model)


def wait_until_running(
    settings: Settings, model: str, *, meanwhile: Callable[[], None] = lambda: None
) -> None:
    """Wait for its replicas.

    Args:
        settings: which storage.
        model: whose.
        meanwhile: is called again and again.

    Raises:
        ClusterError: they don't come up; with the reason.
    """
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while True:
        states = server.applications(settings)
        for name in (model, ROOT_APP):
            state = states.get(name, {"status": "NOT_STARTED", "message": ""})
            if state["status"] in ("DEPLOY_FAILED", "UNHEALTHY"):
                raise ClusterError(cause(state["message"]))
        if all(states.get(name, {}).get("status") == "RUNNING" for name in (model, ROOT_APP)):
            return
        if time.monotonic() > deadline_s:
            raise ClusterError(
                f"no replica was ready after {_START_TIMEOUT_S:.0f} s: "
                f"{cause(states.get(model, {}).get('message', ''))}"
            )
        meanwhile()
        time.sleep(_POLL_S)


def cause(message: str) -> str:
    """Pick what a person needs from Serve's message, which holds the replica's whole traceback."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if "Error" in line.split(":", 1)[0] and ":" in line]
    return errors[-1] if errors else (lines[-1] if lines else "no reason is known")


def wait_until_answering(wanted: Deployment, token: str, *, rollout_id: str | None = None) -> None:
    """Wait until this version, and it alone, answers over HTTP.

    Args:
        wanted: the version.
        token: an API key.
        rollout_id: of the second version that its replicas must hold; None: they must hold none.

    Raises:
        ClusterError: something else answers after half a minute.
    """
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
            failure = document.get("next_version_failed")
            if failure is not None:
                raise ClusterError(failure)
            found = (document.get("digest"), document.get("rollout", {}).get("id"))
            in_a_row = in_a_row + 1 if found == (wanted.digest, rollout_id) else 0
        except urllib.error.HTTPError as error:
            in_a_row = 0
            answer = _refusal(error)
        except (OSError, ValueError, AttributeError) as error:
            in_a_row = 0
            answer = str(error)
        if time.monotonic() > deadline_s:
            raise ClusterError(f"it runs, but {wanted.url} answers with {answer}")
        time.sleep(_POLL_S)


def _refusal(error: urllib.error.HTTPError) -> str:
    """Say what a server refuses; raise where waiting is of no use.

    Raises:
        ClusterError: a shared replica has tried to load the version, and can't.
    """
    with error:
        try:
            document = json.loads(error.read(1 << 16))
            code, message = document["code"], document["message"]
        except (OSError, ValueError, KeyError, TypeError):
            return str(error)
    if code == NOT_LOADED:
        raise ClusterError(message)
    return f"{error.code}: {message}"
