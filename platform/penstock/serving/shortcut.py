"""Lets a replica answer its own predict paths before Serve's bookkeeping of each request.

Serve's HTTP server in a replica wraps every request in a request id, metadata, a context, a
semaphore, timers and counters, which cost more than the prediction. Serve lets the operator put
middlewares before all that (RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH); this one hands the predict
paths to the replica of this process, which counts, limits and answers for itself. A replica that
stops still finishes what it has begun: its HTTP server waits for open requests.

What Serve then does not see is how many requests are in flight; it scales replicas by that. So the
replica of a deployment that scales takes no shortcut.
"""

from typing import Any

from starlette.middleware import Middleware

from penstock.serving import http

_direct: dict[str, http.AsgiApp] = {}


def take(paths: frozenset[str], app: http.AsgiApp) -> None:
    """Answer these paths in this process by this application, from the next request on."""
    _direct.update(dict.fromkeys(paths, app))


class Shortcut:
    """The middleware: a path that was taken goes straight to its application."""

    def __init__(self, app: http.AsgiApp) -> None:
        """Stand before Serve's own application."""
        self._app = app

    async def __call__(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer, or pass on to Serve."""
        direct = _direct.get(scope["path"]) if scope["type"] == "http" else None
        await (direct or self._app)(scope, receive, send)


def middlewares() -> list[Middleware]:
    """What Serve asks for in each process that serves HTTP."""
    factory: Any = Shortcut
    return [Middleware(factory)]
