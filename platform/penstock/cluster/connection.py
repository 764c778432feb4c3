"""How to reach the Ray that the settings point at, and what to say when it does not answer."""

import json
import logging
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from penstock.access_settings import LOOPBACK_HOSTS
from penstock.cluster import local, tokens
from penstock.errors import ClusterError
from penstock.settings import Settings, export_environment, inherited_environment

_CHATTY_LOGGERS = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
UP_HINT = "start one with `penstock up`, or point ray.address at another Ray's dashboard"


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A dashboard, and the token that it asks for."""

    url: str
    token_path: Path | None
    is_local: bool
    """It is the Ray of `penstock up` on this machine."""

    @property
    def headers(self) -> dict[str, str]:
        """What every request carries."""
        if self.token_path is None:
            return {}
        return {"Authorization": f"Bearer {tokens.read(self.token_path)}"}

    def get(self, path: str, *, timeout_s: float = 2.0) -> Any:
        """Read a path of the dashboard's API as JSON.

        Raises:
            ClusterError: no answer, or one that refuses.
        """
        request = urllib.request.Request(f"{self.url}{path}", headers=self.headers)  # noqa: S310  # the settings take http(s) only
        # Loopback never goes through a company's proxy.
        direct = [urllib.request.ProxyHandler({})] if self._is_loopback else []
        try:
            with urllib.request.build_opener(*direct).open(request, timeout=timeout_s) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code in (401, 403):
                raise ClusterError(
                    f"Ray at {self.url} refuses our token ({error.code})",
                    next_step="name the file with its token in ray.token_path",
                ) from None
            raise ClusterError(f"Ray at {self.url} answers {path} with {error.code}") from None
        except (OSError, ValueError) as error:
            reason = getattr(error, "reason", error)
            raise ClusterError(
                f"Ray at {self.url} does not answer: {reason}", next_step=UP_HINT
            ) from None

    @property
    def _is_loopback(self) -> bool:
        return urlsplit(self.url).hostname in LOOPBACK_HOSTS


def endpoint(settings: Settings) -> Endpoint:
    """Find the dashboard that the settings point at.

    Raises:
        ClusterError: no Ray is up here and none is named.
    """
    if settings.ray.address is not None:
        url = settings.ray.address.rstrip("/")
        return Endpoint(url=url, token_path=_other_token(settings), is_local=False)
    cluster = local.current(settings)
    if cluster is None:
        raise ClusterError("no Ray is up for this project", next_step=UP_HINT)
    return Endpoint(url=cluster.dashboard_url, token_path=Path(cluster.token_path), is_local=True)


def _other_token(settings: Settings) -> Path | None:
    """Look where the settings say, then where Ray itself looks."""
    if settings.ray.token_path is not None:
        return settings.project_root / Path(settings.ray.token_path).expanduser()
    named = inherited_environment().get("RAY_AUTH_TOKEN_PATH")
    for path in (Path(named) if named else None, Path.home() / ".ray" / "auth_token"):
        if path is not None and path.is_file():
            return path
    return None


def by_hand(settings: Settings) -> dict[str, str]:
    """Name the variables with which Ray's own commands reach the same Ray."""
    target = endpoint(settings)
    variables = {"RAY_API_SERVER_ADDRESS": target.url}
    if target.token_path is not None:
        variables |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(target.token_path)}
    if target.is_local:
        variables[local.LOOPBACK_NODE_VARIABLE] = "0"
    return variables


def export(settings: Settings) -> Endpoint:
    """Let Ray's libraries in this process talk to that Ray; do it before they are imported.

    Ray lets RAY_ADDRESS and RAY_API_SERVER_ADDRESS win over every argument; one left from another
    Ray would send our job there.
    """
    target = endpoint(settings)
    export_environment({"RAY_ADDRESS": None, **by_hand(settings)})
    return target


def submission_client(settings: Settings) -> Any:
    """Give Ray's client for jobs, connected (`ray.job_submission.JobSubmissionClient`).

    Raises:
        ClusterError: nobody answers there.
    """
    target = export(settings)
    target.get("/api/version", timeout_s=10.0)
    from ray.job_submission import JobSubmissionClient

    for name in _CHATTY_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    return JobSubmissionClient(target.url, headers=target.headers)


def connect(settings: Settings) -> None:
    """Make this process a driver of the Ray of `penstock up`, or of the job that it is part of.

    Raises:
        ClusterError: no Ray is up, or ray.address names another one: a driver must run inside
            its network, which a job does.
    """
    if _inside_a_job():
        import ray

        ray.init(namespace="penstock", ignore_reinit_error=True, configure_logging=False)
        return
    if settings.ray.address is not None:
        raise ClusterError(
            "this process cannot be a driver of the Ray at ray.address",
            next_step="submit the work as a job",
        )
    cluster = local.current(settings)
    if cluster is None:
        raise ClusterError("no Ray is up for this project", next_step=UP_HINT)
    export(settings)
    import ray

    _refresh_what_ray_read_on_import()
    ray.init(
        address=cluster.address,
        namespace="penstock",
        ignore_reinit_error=True,
        configure_logging=False,
        log_to_driver=False,
    )


def _inside_a_job() -> bool:
    # Ray sets it for the entry point of a submitted job.
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in inherited_environment()


def _refresh_what_ray_read_on_import() -> None:
    """Let an already imported Ray (a test, a notebook) see the variables that we just set."""
    from ray import _raylet
    from ray._private import ray_constants

    ray_constants.ENABLE_RAY_CLUSTER = False
    core: Any = _raylet  # a compiled module; its stub leaves these two out
    core.Config.initialize("")
    core.AuthenticationTokenLoader.instance().reset_cache()
