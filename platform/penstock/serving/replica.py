"""The one replica type of a model of its own: Serve's process around a `ModelServer`.

A replica loads neither torch nor mlflow nor anything of training.
"""

import gc
import sys
import time
from typing import Any

from penstock.serving import http, shortcut
from penstock.serving.api_keys import Gatekeeper
from penstock.serving.model_server import ModelArguments, ModelServer
from penstock.settings import load_settings

MAX_REQUESTS_IN_SERVE = 1 << 16
"""For Serve's own limit: beyond what HAProxy lets in, so that every refusal is ours."""
SWITCH_S = 0.0005
"""How long the thread that writes the prediction log may hold up answers; Python's 5 ms, a few
times in a row, is what the slowest of a hundred requests then waits for."""


class Replica:
    """Answers for one model, and for nobody who may not ask it."""

    _server: ModelServer | None = None

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Load the model, and predict once; only then is the replica ready.

        Args:
            arguments: `ModelArguments`.

        Raises:
            IntegrityError: the package is not the registered one, or can't predict.
        """
        settings = load_settings()
        self._server = server = ModelServer(settings, ModelArguments.model_validate(arguments))
        self._answer_for = server.answer
        self._metrics = server.metrics
        self._gatekeeper = Gatekeeper(settings)
        http.answer_to(settings.serving.public_names)
        self._scope = f"predict:{server.arguments.model}"
        if server.policy.min_replicas == server.policy.max_replicas:
            shortcut.take(server.predict_paths, http.AsgiApp(self.handle))
        spare_the_collector()
        sys.setswitchinterval(SWITCH_S)

    def __del__(self) -> None:
        # Serve calls it when the replica is stopped.
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def __serve_build_asgi_app__(self) -> http.AsgiApp:
        """Hand Serve the plain ASGI application."""
        return http.AsgiApp(self.handle)

    async def check_health(self) -> None:
        """Fail where the model can no longer predict; Serve then replaces the replica."""
        if self._server is not None:
            self._server.check_health()
            # Serve asks on the loop that requests are answered on, the first time before any.
            self._server.start_work()

    async def handle(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer one request."""
        started_s = time.perf_counter()
        answer = await http.answer_safely(self._answer, scope, receive)
        await http.send_answer(send, answer, receive)
        metrics = answer.metrics or self._metrics
        metrics.count(answer.status, time.perf_counter() - started_s)

    async def _answer(self, scope: http.Scope, receive: http.Receive) -> http.Answer:
        self._gatekeeper.check(scope["headers"], self._scope)
        return await self._answer_for(scope, receive)


def spare_the_collector() -> None:
    """Let the garbage collector look at requests only, and less often.

    What is loaded by now stays for the process's life: a million objects that each full collection
    would walk through while requests wait. A request leaves no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)
