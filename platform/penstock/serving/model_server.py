"""A model in a process: a request comes in, its features are looked up, the model answers.

Everything happens in one process and, per batch, in one call of the online store and one of the
graph: each further hop would halve the rate.
"""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from typing import Any

from penstock.errors import RequestError, StoreEmptyError
from penstock.records import Record
from penstock.serving import http
from penstock.serving.arm import NO_SCORE, Arm, check_finite, split
from penstock.serving.batching import Batcher
from penstock.serving.explaining import Explaining
from penstock.serving.limits import Breaker
from penstock.serving.prediction_log import Asked
from penstock.serving.protocols import Protocol, Scored
from penstock.serving.requests import Row
from penstock.serving.task_routes import TaskRoutes
from penstock.serving.task_worker import TaskWorker
from penstock.serving.trial import Trial, TrialArguments
from penstock.settings import Settings

_NUM_FULL_REQUESTS = 8
"""Requests of the largest size whose rows may be in flight at one replica."""


class ModelArguments(Record):
    """Which version of which model is served."""

    model: str
    version: int
    digest: str
    package_path: str
    max_body_bytes: int
    trial: TrialArguments | None = None
    """A second version, during a rollout."""


class ModelServer:
    """Serves one version of one model under `/v1/models/<name>`, and one on trial beside it."""

    _arm: Arm | None = None
    _trial: Trial | None = None
    _worker: TaskWorker | None = None
    _explaining: Explaining | None = None

    def __init__(self, settings: Settings, arguments: ModelArguments) -> None:
        """Verify the package, load it, and predict once.

        Args:
            settings: which online store, which keys.
            arguments: what to serve.

        Raises:
            IntegrityError: the package is not the registered one, or can't predict.
        """
        self.arguments = arguments
        max_body_bytes = arguments.max_body_bytes
        self._arm = arm = Arm(
            settings,
            package_path=arguments.package_path,
            digest=arguments.digest,
            max_body_bytes=max_body_bytes,
        )
        self._scoring = arm.scoring
        self.metrics = arm.metrics
        self._protocols = arm.protocols
        self.policy = arm.signature.serving
        self._max_body_bytes = max_body_bytes
        self._max_requests = self.policy.max_requests_in_flight
        self._max_rows = max(
            self._max_requests, _NUM_FULL_REQUESTS * self.policy.max_rows_per_request
        )
        self._num_requests = 0
        self._num_rows = 0
        self._breaker = Breaker()
        self._posts, self._pages = dict(arm.protocols.posts), dict(arm.protocols.pages)
        if arguments.trial is not None:
            try:
                trial = Trial(settings, arguments.trial, arm, max_body_bytes=max_body_bytes)
            except BaseException:
                arm.close()
                raise
            self._join(trial)
        self._explaining = Explaining(arm, self._trial, max_body_bytes=max_body_bytes)
        self._batcher = Batcher(
            self._score,
            max_batch_size=self.policy.max_batch_size,
            wait_s=self.policy.batch_wait_s,
        )
        self._tasks = TaskRoutes(settings, arm.signature, self._protocols, lambda: self._posts)
        self._worker = TaskWorker(
            settings, arguments.model, score=self._score_chunk, logged=self._logged
        )
        self.metrics.watch(
            in_flight=lambda: self._num_requests, waiting=lambda: self._batcher.num_waiting
        )

    @property
    def predict_paths(self) -> frozenset[str]:
        """Where rows are scored at once."""
        return frozenset(self._posts)

    @property
    def has_work(self) -> bool:
        """Whether something would be missed if it went: a rollout, or an async request."""
        return self._trial is not None or (self._worker is not None and self._worker.is_working)

    def _join(self, trial: Trial) -> None:
        """Take a second version in; what names its number asks it alone."""
        self._trial = trial
        theirs = trial.arm.protocols
        self._posts = {**theirs.posts, **self._posts}
        self._pages = {**theirs.pages, **self._pages}
        self._protocols.describe_more = lambda: {"rollout": trial.describe()}

    def close(self) -> None:
        """Let go, and write what the log still holds; again is nothing."""
        for part in (self._worker, self._explaining, self._trial, self._arm):
            if part is not None:
                part.close()
        self._worker = self._explaining = self._trial = self._arm = None

    def check_health(self) -> None:
        """Predict once.

        Raises:
            IntegrityError: the model no longer can.
        """
        if self._arm is not None:
            self._arm.check_health()

    def start_work(self) -> None:
        """Work on accepted async requests from now on, on the running loop; again is nothing."""
        if self._worker is not None:
            self._worker.start()

    async def answer(self, scope: http.Scope, receive: http.Receive) -> http.Answer:
        """Answer one request of somebody who may ask the model.

        Raises:
            RequestError: it is refused.
        """
        path = scope["path"]
        protocol = self._posts.get(path)
        if protocol is not None:
            if scope["method"] != "POST":
                return http.method_answer(scope["method"], "POST")
            return await self._ask(scope, receive, path, protocol)
        page = self._pages.get(path)
        if page is not None:
            if scope["method"] not in ("GET", "HEAD"):
                return http.method_answer(scope["method"], "GET")
            return page()
        if self._explaining is not None and path in self._explaining.paths:
            return await self._explaining.answer(scope, receive, http.timeout_s(scope["headers"]))
        answer = await self._tasks.answer(scope, receive)
        if answer is None:
            raise self._protocols.unknown(path)
        return answer

    async def _score_chunk(self, path: str, headers: http.Headers, body: bytes) -> http.Answer:
        """Answer a part of an async request as if it had come by itself."""

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def ask(scope: http.Scope, receive: http.Receive) -> http.Answer:
            protocol = self._posts.get(path)
            if protocol is None:
                raise self._protocols.unknown(path)
            return await self._ask(scope, receive, path, protocol)

        started_s = time.perf_counter()
        answer = await http.answer_safely(ask, {"path": path, "headers": headers}, receive)
        metrics = answer.metrics or self.metrics
        metrics.count(answer.status, time.perf_counter() - started_s)
        return answer

    async def _logged(self) -> None:
        """Wait until what was answered by now is in the prediction log."""
        for part in (self._arm, self._trial):
            if part is not None:
                await part.logged()

    async def _ask(
        self, scope: http.Scope, receive: http.Receive, path: str, protocol: Protocol
    ) -> http.Answer:
        """Read a request's rows, score them among those of others, and answer."""
        headers = scope["headers"]
        if self._num_requests >= self._max_requests:
            raise _overloaded(f"{self._num_requests} requests are in flight")
        timeout_s = http.timeout_s(headers)
        self._num_requests += 1
        num_rows = 0
        try:
            http.check_json(headers, *protocol.kinds)
            body = await http.read_body(headers, receive, max_bytes=self._max_body_bytes)
            rows, beside = protocol.read(headers, body)
            if self._num_rows and self._num_rows + len(rows) > self._max_rows:
                raise _overloaded(f"{self._num_rows} rows are in flight")
            num_rows = len(rows)
            self._num_rows += num_rows
            if self._trial is not None:
                answer = await self._try(self._trial, path, (headers, body, rows), beside)
                if answer is not None:
                    return answer
            started_s = time.perf_counter()
            asked = _asked(self.arguments.digest, headers, body, rows)
            if not self._breaker.lets_in(started_s):
                raise RequestError(503, "model_broken", "the model has no finite score for anybody")
            if timeout_s is None:
                scored = await self._batcher.submit(asked)
            else:
                async with asyncio.timeout(timeout_s):
                    scored = await self._batcher.submit(asked)
            if isinstance(scored, Scored) or scored.code == NO_SCORE:
                self._breaker.count(has_score=isinstance(scored, Scored), now_s=started_s)
            if self._trial is not None and isinstance(scored, Scored):
                self._trial.answered_by_old(asked, scored, time.perf_counter() - started_s)
        except TimeoutError:
            raise RequestError(
                504, "deadline_exceeded", f"no answer within the {timeout_s:g} s that were allowed"
            ) from None
        finally:
            self._num_requests -= 1
            self._num_rows -= num_rows
        if isinstance(scored, RequestError):
            raise scored
        return protocol.write(scored, asked.prediction_id, beside)

    async def _try(
        self, trial: Trial, path: str, request: tuple[http.Headers, bytes, list[Row]], beside: Any
    ) -> http.Answer | None:
        """Let the version on trial answer what is its; None: the first version must.

        Raises:
            RequestError: it was asked for by its number, and can't.
        """
        theirs = trial.arm.protocols.posts
        if path not in theirs:
            # The first version was asked for by its number.
            return None
        is_named = path not in self._protocols.posts
        if not (is_named or trial.takes(request[2])):
            return None
        asked = _asked(trial.arm.digest, *request)
        scored = await trial.answer(asked)
        if scored is None:
            if is_named:
                number = trial.arm.version
                raise RequestError(503, "unavailable", f"version {number}, on trial, has no answer")
            return None
        answer = theirs[path].write(scored, asked.prediction_id, beside)
        return replace(answer, metrics=trial.arm.metrics)

    async def _score(self, requests: Sequence[Asked]) -> list[Scored | RequestError]:
        """Look up and score the rows of all waiting requests at once."""
        try:
            scored = await self._score_rows(requests)
        except StoreEmptyError as error:
            # Scores from features that are all missing would look like any others.
            refusal = RequestError(503, "features_absent", str(error))
            return [refusal] * len(requests)
        except Exception:
            if len(requests) == 1:
                raise
            # One poisonous request must not fail its neighbours.
            return [await self._score_alone(request) for request in requests]
        return split(scored, requests)

    async def _score_alone(self, request: Asked) -> Scored | RequestError:
        try:
            return check_finite(await self._score_rows([request]))
        except Exception:  # noqa: BLE001 - whatever one request meets, its neighbours are answered
            http.logger.exception("a request failed in the model or the feature store")
            return RequestError(503, "internal", "the server failed on this request; it is logged")

    async def _score_rows(self, requests: Sequence[Asked]) -> Scored:
        steps = self._scoring(requests)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                scored: Scored = done.value
                self.metrics.tell_soon()
                return scored
            # Between large steps the loop may answer health checks and refusals.
            await asyncio.sleep(0)


def _overloaded(what: str) -> RequestError:
    return RequestError(503, "overloaded", f"{what}; try again in a moment")


def _asked(digest: str, headers: http.Headers, body: bytes, rows: list[Row]) -> Asked:
    """Name the predictions of a request: the same ones where a client sends it again.

    Raises:
        RequestError: its id is too long.
    """
    request_id = http.request_id(headers)
    identity = blake2b(digest.encode(), digest_size=16)
    identity.update(b"%d:" % len(request_id) + request_id)
    identity.update(body)
    # latin-1 gives every byte that a header may hold a character.
    return Asked(identity.hexdigest(), request_id.decode("latin-1") or None, rows)
