"""The replica type of many models: each is loaded when it is asked for, as `loaded_models` says."""

import asyncio
import sys
import time
from collections.abc import Awaitable

import orjson
from pydantic import ValidationError

from penstock.errors import IntegrityError, RequestError
from penstock.serving import http, shortcut
from penstock.serving.api_keys import READ, Gatekeeper
from penstock.serving.loaded_models import Loaded, LoadedModels
from penstock.serving.metrics import SharedMetrics
from penstock.serving.model_server import ModelArguments, ModelServer
from penstock.serving.replica import SWITCH_S, spare_the_collector
from penstock.serving.served_models import ServedModels
from penstock.serving.shared_targets import target_path
from penstock.settings import Settings, load_settings

_PREFIX = http.MODEL_PREFIX
_LISTING = _PREFIX.rstrip("/")


class SharedReplica:
    """Answers for every model that has no application of its own."""

    _models: LoadedModels | None = None

    def __init__(self) -> None:
        """Prepare; nothing is loaded before it is asked for."""
        settings = load_settings()
        self._settings = settings
        self._gatekeeper = Gatekeeper(settings)
        http.answer_to(settings.serving.public_names)
        self._served = ServedModels(settings)
        self._app = http.AsgiApp(self.handle)
        self._models = LoadedModels(
            find=lambda model: find_target(settings, model),
            load=self._load,
            max_bytes=settings.serving.shared_model_bytes,
            metrics=SharedMetrics(),
        )
        spare_the_collector()
        sys.setswitchinterval(SWITCH_S)

    def __del__(self) -> None:
        # Serve calls it when the replica is stopped.
        models, self._models = self._models, None
        if models is not None:
            models.close()

    def __serve_build_asgi_app__(self) -> http.AsgiApp:
        """Hand Serve the plain ASGI application."""
        return self._app

    async def check_health(self) -> None:
        """Look after the models; a replica without any is well."""
        if self._models is not None:
            self._models.check_health()

    async def handle(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer one request."""
        started_s = time.perf_counter()
        asked: list[ModelServer] = []

        async def answer_it(scope: http.Scope, receive: http.Receive) -> http.Answer:
            return await self._answer(asked, scope, receive)

        answer = await http.answer_safely(answer_it, scope, receive)
        await http.send_answer(send, answer, receive)
        metrics = answer.metrics or (asked[0].metrics if asked else None)
        if metrics is not None:
            metrics.count(answer.status, time.perf_counter() - started_s)

    async def _answer(
        self, asked: list[ModelServer], scope: http.Scope, receive: http.Receive
    ) -> http.Answer:
        path: str = scope["path"]
        model = path.removeprefix(_PREFIX).partition("/")[0]
        models = self._models
        if models is None or path.rstrip("/") == _LISTING:
            self._gatekeeper.check(scope["headers"], READ)
            if scope["method"] not in ("GET", "HEAD"):
                return http.method_answer(scope["method"], "GET")
            return await self._served.answer()
        self._gatekeeper.check(scope["headers"], f"predict:{model}")
        loaded = await _within(models.get(model), scope, receive)
        with models.in_use(loaded) as server:
            asked.append(server)
            answer = await server.answer(scope, receive)
        if path == _PREFIX + model and (failure := models.failure(model)) is not None:
            return _with_failure(answer, failure)
        return answer

    def _load(self, arguments: ModelArguments) -> ModelServer:
        server = ModelServer(self._settings, arguments)
        if not server.policy.shared:
            server.close()
            raise IntegrityError(f"version {arguments.version} is not to be shared")
        shortcut.take(server.predict_paths, self._app)
        return server


def find_target(settings: Settings, model: str) -> ModelArguments | None:
    """Read what should be served of a model; None: nothing."""
    if not model.isidentifier():
        return None
    try:
        return ModelArguments.model_validate_json(target_path(settings, model).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError:
        http.logger.exception("what should be served of %s cannot be read", model)
        raise RequestError(503, "internal", "the server failed; it is logged") from None


async def _within(loading: Awaitable[Loaded], scope: http.Scope, receive: http.Receive) -> Loaded:
    """Wait for a model no longer than its caller does."""
    timeout_s = http.timeout_s(scope["headers"])
    try:
        async with asyncio.timeout(timeout_s):
            return await loading
    except TimeoutError:
        raise RequestError(
            504, "deadline_exceeded", f"the model was not loaded within {timeout_s:g} s"
        ) from None
    except RequestError:
        await http.drain(receive)
        raise


def _with_failure(answer: http.Answer, failure: str) -> http.Answer:
    """Say on a model's page that another version should answer, and why it does not."""
    if answer.status != 200:
        return answer
    document = {**orjson.loads(answer.body), "next_version_failed": failure}
    return http.Answer(status=200, body=orjson.dumps(document))
