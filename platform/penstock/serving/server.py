"""Serve itself on the Ray in use: started once, on the address of the settings, with its root.

`penstock up` runs this module in the background, so that the first deploy finds Serve running;
`deploy` calls `start` again, which then has nothing to do.
"""

import importlib.util
import logging
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import structlog

from penstock import logs
from penstock.cluster import local, tls
from penstock.cluster.connection import connect
from penstock.errors import ClusterError, NotFoundError, PenstockError
from penstock.locks import exclusive
from penstock.serving.code import freeze_code
from penstock.serving.http import ROOT_APP
from penstock.serving.shared_targets import SHARED_APP, shared_models
from penstock.settings import Settings, load_settings

_LOCK_WAIT_S = 180.0
_ATTEMPTS = 3
# glibc gives each of a replica's forty threads an arena of its own, which keeps what it had once.
_MALLOC_ARENAS = "2"
# Who may ask, by which names, and in which protocols; and what shared models may take.
_VARIABLES = re.compile(
    "PENSTOCK_SERVING__(REQUIRE_KEY|PUBLIC_NAMES|JWT__.*|GRPC|SHARED_MODEL_BYTES)"
)

log = structlog.get_logger()


def url(settings: Settings) -> str:
    """Find where Serve listens: the Ray of `penstock up` may have had to take another port."""
    cluster = local.current(settings)
    if cluster is not None:
        return cluster.serving_url
    return f"http://{settings.serving.plain_host}:{settings.serving.port}"


def start(settings: Settings) -> None:
    """Start Serve and the application at `/` where they do not run yet; waits for neither app.

    The application is renewed where it runs another code, for it knows the declared tables, and
    where others may ask than should, or in other protocols.

    Raises:
        ClusterError: no Ray is up, or a Serve runs that was started to listen elsewhere.
        BusyError: another process has been starting it for minutes.
    """
    with exclusive(_lock_path(settings), what="starting Serve", wait_s=_LOCK_WAIT_S):
        connect_driver(settings)
        from ray import serve
        from ray.serve.config import HTTPOptions

        check_reach(settings)
        host, port = settings.serving.plain_host, int(url(settings).rsplit(":", 1)[1])
        serve.start(http_options=HTTPOptions(host=host, port=port))
        check_listening(host, port)
        wanted = runtime_env(settings, str(freeze_code(settings)))
        if runs_on(ROOT_APP, "root", wanted):
            return
        builders = load_builders(settings)
        root = builders.build_root(
            builders.RootArguments(grpc=settings.serving.grpc, runtime_env=wanted)
        )
        target = serve.RunTarget(target=root, name=ROOT_APP, route_prefix="/")
        serve.run_many([target], wait_for_applications_running=False)


def runs_on(application: str, deployment: str, wanted: dict[str, Any]) -> bool:
    """Whether an application is up, on this code and for these callers.

    Args:
        application: its name.
        deployment: its first deployment.
        wanted: the runtime environment that it should have.
    """
    if states().get(application, {}).get("status") not in ("RUNNING", "DEPLOYING"):
        return False
    options = deployment_config(application, deployment)["ray_actor_options"]
    return _what_matters(options.get("runtime_env", {})) == _what_matters(wanted)


def deployment_config(application: str, deployment: str) -> dict[str, Any]:
    """What Serve was told of a deployment."""
    from ray.serve.context import _get_global_client

    client: Any = _get_global_client()
    found = client.get_serve_details()["applications"][application]["deployments"][deployment]
    return dict(found["deployment_config"])


def _what_matters(runtime_env: dict[str, Any]) -> tuple[str, dict[str, str]]:
    """The digest of the code, and the settings that a replica can't do without."""
    variables = runtime_env.get("env_vars", {})
    kept = {name: told for name, told in variables.items() if _VARIABLES.fullmatch(name)}
    return Path(runtime_env.get("working_dir", "")).name, kept


def check_reach(settings: Settings) -> None:
    """Refuse settings that the Ray in use was not started for: HAProxy got its addresses then.

    Raises:
        ClusterError: keys would no longer be asked for, or TLS would not be spoken as it should.
    """
    cluster = local.current(settings)
    if cluster is None:
        return
    there, wanted = cluster.tls_address, tls.address(settings)
    if there != wanted:
        raise ClusterError(
            f"the Ray that is up was started with {f'TLS on {there}' if there else 'no TLS'}",
            allowed=f"TLS on {wanted}" if wanted else "no TLS, say the settings",
            next_step="penstock down, penstock up, then deploy again",
        )


def _lock_path(settings: Settings) -> Path:
    # A Ray has one Serve, whatever storage its callers work on.
    cluster = local.current(settings)
    folder = settings.storage_path / "locks" if cluster is None else Path(cluster.temp_dir)
    return folder / "serve.lock"


def connect_driver(settings: Settings) -> None:
    """Make this process a driver that may call Serve's API."""
    connect(settings)
    from ray import serve  # noqa: F401 - sets its logger up, at INFO

    # Serve tells at INFO what our own commands tell already.
    logging.getLogger("ray.serve").setLevel(logging.WARNING)


def check_listening(host: str, port: int) -> None:
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


def applications(settings: Settings) -> dict[str, dict[str, Any]]:
    """The state of each model that is served, and of the application at `/`.

    A model without an application of its own has the state of the shared one.
    """
    found = states()
    shared = found.pop(SHARED_APP, None)
    if shared is not None:
        found |= dict.fromkeys(shared_models(settings), shared)
    return found


def states() -> dict[str, dict[str, Any]]:
    """Every application's status, with the first thing that went wrong in it."""
    from ray import serve

    found = {}
    for name, application in serve.status().applications.items():
        faults = [d.message for d in application.deployments.values() if d.message]
        message = "; ".join(dict.fromkeys([*faults, application.message])).strip("; ")
        found[name] = {"status": str(application.status.value), "message": message}
    return found


def runtime_env(settings: Settings, code_path: str) -> dict[str, Any]:
    """What replicas run on: the frozen code, and the settings that they must know."""
    variables = settings.job_environment() | {"MALLOC_ARENA_MAX": _MALLOC_ARENAS}
    return {"working_dir": f"local://{code_path}", "env_vars": variables}


def load_builders(settings: Settings) -> ModuleType:
    """Load the project's serve_apps/online.py, which need not be on the path.

    Raises:
        NotFoundError: the project has none.
    """
    file = settings.project_root / "serve_apps" / "online.py"
    spec = importlib.util.spec_from_file_location("penstock_serve_apps_online", file)
    if not file.is_file() or spec is None or spec.loader is None:
        raise NotFoundError(
            f"the project has no {file}", next_step="copy serve_apps/ from the template project"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def start_in_background(settings: Settings) -> None:
    """Start as `penstock up` wants it: nobody watches, so what was only too slow is tried again."""
    for _ in range(_ATTEMPTS - 1):
        try:
            start(settings)
        except PenstockError:
            raise
        except Exception as error:  # noqa: BLE001 - on a busy machine Serve kills its slow proxy
            log.warning("serve_did_not_start", reason=f"{type(error).__name__}: {error}")
        else:
            return
    start(settings)


if __name__ == "__main__":
    logs.configure()
    start_in_background(load_settings())
