"""The one replica type: a request comes in, its features are looked up, the model answers.

Everything happens in one process and, per batch, in one call of the online store and one of the
graph: each further hop would halve the rate. A replica loads neither torch nor mlflow nor anything
of training.
"""

import asyncio
import gc
import sys
import time
from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np

from penstock.errors import IntegrityError, RequestError, StoreEmptyError
from penstock.features.online import OnlineReader
from penstock.records import Record
from penstock.registry.package import VerifiedPackage, verify
from penstock.serving import http, shortcut
from penstock.serving.api_keys import Gatekeeper
from penstock.serving.batching import Batcher
from penstock.serving.metrics import RequestMetrics
from penstock.serving.prediction_log import (
    AnsweredBatch,
    Asked,
    PredictionLog,
    SegmentHeader,
    log_folder,
)
from penstock.serving.predictor import Predictor
from penstock.serving.protocols import Protocol, Protocols, Scored
from penstock.serving.requests import RequestParser, Row
from penstock.settings import Settings, load_settings

MAX_REQUESTS_IN_SERVE = 1 << 16
"""For Serve's own limit: beyond what HAProxy lets in, so that every refusal is ours."""
_NUM_FULL_REQUESTS = 8
"""Requests of the largest size whose rows may be in flight at one replica."""
_ROWS_PER_STEP = 512
_MAX_REQUEST_ID_BYTES = 200
_SWITCH_S = 0.0005
"""How long the thread that writes the prediction log may hold up answers; Python's 5 ms, a few
times in a row, is what the slowest of a hundred requests then waits for."""


class ReplicaArguments(Record):
    """Which model version a replica serves."""

    model: str
    version: int
    digest: str
    package_path: str
    max_body_bytes: int


class Replica:
    """Serves one version of one model under `/v1/models/<name>`."""

    _log: PredictionLog | None = None

    def __init__(self, arguments: dict[str, Any]) -> None:
        """Verify the package, load it, and predict once; only then is the replica ready.

        Raises:
            IntegrityError: the package is not the registered one, or can't predict.
        """
        self._arguments = ReplicaArguments.model_validate(arguments)
        settings = load_settings()
        package = verify(
            Path(self._arguments.package_path), settings, digest=self._arguments.digest
        )
        self._signature = package.signature
        self._policy = package.signature.serving
        self._predictor = Predictor(package)
        self._predictor.check_golden_row()
        self._reader = OnlineReader.open(
            settings, package.signature.use_case, package.signature.feature_service
        )
        _check_same_features(package, self._reader)
        self._protocols = Protocols(
            model=self._arguments.model,
            version=self._arguments.version,
            digest=self._arguments.digest,
            signature=package.signature,
            parser=RequestParser(
                package.signature.request_fields,
                max_rows=self._policy.max_rows_per_request,
                max_body_bytes=self._arguments.max_body_bytes,
            ),
        )
        self._max_body_bytes = self._arguments.max_body_bytes
        self._max_requests = self._policy.max_requests_in_flight
        self._max_rows = max(
            self._max_requests, _NUM_FULL_REQUESTS * self._policy.max_rows_per_request
        )
        self._num_requests = 0
        self._num_rows = 0
        self._gatekeeper = Gatekeeper(settings)
        self._scope = f"predict:{self._arguments.model}"
        if settings.serving.log_predictions:
            self._log = _open_log(settings, package, self._reader)
        self._metrics = RequestMetrics(
            self._arguments.model,
            self._arguments.version,
            take_num_unlogged=self._log.take_num_dropped if self._log else lambda: 0,
        )
        if self._policy.min_replicas == self._policy.max_replicas:
            shortcut.take(frozenset(self._protocols.posts), http.AsgiApp(self.handle))
        _spare_the_collector()
        sys.setswitchinterval(_SWITCH_S)
        self._batcher = Batcher(
            self._score,
            max_batch_size=self._policy.max_batch_size,
            wait_s=self._policy.batch_wait_s,
        )

    def __del__(self) -> None:
        # Serve calls it when the replica is stopped.
        log, self._log = self._log, None
        if log is not None:
            log.close()

    def __serve_build_asgi_app__(self) -> http.AsgiApp:
        """Hand Serve the plain ASGI application."""
        return http.AsgiApp(self.handle)

    async def check_health(self) -> None:
        """Fail where the model can no longer predict; Serve then replaces the replica."""
        self._predictor.check_golden_row()

    async def handle(self, scope: http.Scope, receive: http.Receive, send: http.Send) -> None:
        """Answer one request."""
        started_s = time.perf_counter()
        answer = await http.answer_safely(self._answer, scope, receive)
        await http.send_answer(send, answer, receive)
        self._metrics.count(answer.status, time.perf_counter() - started_s)

    async def _answer(self, scope: http.Scope, receive: http.Receive) -> http.Answer:
        path = scope["path"]
        self._gatekeeper.check(scope["headers"], self._scope)
        protocol = self._protocols.posts.get(path)
        if protocol is not None:
            if scope["method"] != "POST":
                return http.method_answer(scope["method"], "POST")
            return await self._ask(scope, receive, protocol)
        page = self._protocols.pages.get(path)
        if page is not None:
            if scope["method"] not in ("GET", "HEAD"):
                return http.method_answer(scope["method"], "GET")
            return page()
        raise self._protocols.unknown(path)

    async def _ask(
        self, scope: http.Scope, receive: http.Receive, protocol: Protocol
    ) -> http.Answer:
        """Read a request's rows, score them among those of others, and answer."""
        headers = scope["headers"]
        if self._num_requests >= self._max_requests:
            raise _overloaded(f"{self._num_requests} requests are in flight")
        self._num_requests += 1
        num_rows = 0
        try:
            http.check_json(headers, *protocol.kinds)
            body = await http.read_body(headers, receive, max_bytes=self._max_body_bytes)
            rows, beside = protocol.read(headers, body)
            if self._num_rows and self._num_rows + len(rows) > self._max_rows:
                raise _overloaded(f"{self._num_rows} rows are in flight")
            asked = self._asked(headers, body, rows)
            num_rows = len(rows)
            self._num_rows += num_rows
            scored = await self._batcher.submit(asked)
        finally:
            self._num_requests -= 1
            self._num_rows -= num_rows
        if isinstance(scored, RequestError):
            raise scored
        return protocol.write(scored, asked.prediction_id, beside)

    def _asked(self, headers: http.Headers, body: bytes, rows: list[Row]) -> Asked:
        """Name the predictions of this request: the same ones where a client sends it again."""
        request_id = next((value for key, value in headers if key == b"x-request-id"), b"")
        if len(request_id) > _MAX_REQUEST_ID_BYTES:
            raise RequestError(
                422, "bad_request_id", f"X-Request-Id has over {_MAX_REQUEST_ID_BYTES} bytes"
            )
        identity = blake2b(self._arguments.digest.encode(), digest_size=16)
        identity.update(b"%d:" % len(request_id) + request_id)
        identity.update(body)
        # latin-1 gives every byte that a header may hold a character.
        return Asked(identity.hexdigest(), request_id.decode("latin-1") or None, rows)

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
        answers: list[Scored | RequestError] = []
        start = 0
        for request in requests:
            end = start + len(request.rows)
            part = Scored(scores=scored.scores[start:end], missing=scored.missing[start:end])
            answers.append(self._check_finite(part))
            start = end
        return answers

    async def _score_alone(self, request: Asked) -> Scored | RequestError:
        try:
            return self._check_finite(await self._score_rows([request]))
        except Exception:  # noqa: BLE001 - whatever one request meets, its neighbours are answered
            http.logger.exception("a request failed in the model or the feature store")
            return RequestError(503, "internal", "the server failed on this request; it is logged")

    async def _score_rows(self, requests: Sequence[Asked]) -> Scored:
        rows = [row for request in requests for row in request.rows]
        scores, missing, found = [], [], []
        for start in range(0, len(rows), _ROWS_PER_STEP):
            if start:
                # Between large steps the loop may answer health checks and refusals.
                await asyncio.sleep(0)
            looked_up = self._reader.read(rows[start : start + _ROWS_PER_STEP])
            scores.append(self._predictor.predict(looked_up.values))
            missing += looked_up.missing
            found.append(looked_up)
        self._metrics.count_batch(missing)
        all_scores = scores[0] if len(scores) == 1 else np.concatenate(scores)
        if self._log is not None:
            self._log.put(AnsweredBatch(time.time_ns() // 1_000, requests, found, all_scores))
        return Scored(scores=all_scores, missing=missing)

    def _check_finite(self, scored: Scored) -> Scored | RequestError:
        finite = np.isfinite(scored.scores)
        if finite.all():
            return scored
        row = int(np.argmin(finite))
        return RequestError(
            422, "no_score", "the model has no finite score for this row", path=f"$.rows[{row}]"
        )


def _open_log(settings: Settings, package: VerifiedPackage, reader: OnlineReader) -> PredictionLog:
    signature = package.signature
    header = SegmentHeader(
        use_case=signature.use_case,
        model=signature.model,
        version=package.manifest.version,
        digest=package.digest,
        feature_service=signature.feature_service,
        feature_names=reader.feature_names,
        fields=reader.request_fields,
        views=reader.view_names,
    )
    root = log_folder(settings, signature.use_case)
    return PredictionLog(root, header, max_bytes=settings.serving.prediction_log_bytes)


def _spare_the_collector() -> None:
    """Let the garbage collector look at requests only, and less often.

    What is loaded by now stays for the replica's life: a million objects that each full collection
    would walk through while requests wait. A request leaves no cycles.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 20)


def _overloaded(what: str) -> RequestError:
    return RequestError(503, "overloaded", f"{what}; try again in a moment")


def _check_same_features(package: VerifiedPackage, reader: OnlineReader) -> None:
    declared = package.signature.feature_names
    if tuple(reader.feature_names) != declared:
        raise IntegrityError(
            f"the feature service {package.signature.feature_service} now gives "
            f"{', '.join(reader.feature_names)}",
            allowed=f"what the model was trained on: {', '.join(declared)}",
            next_step="deploy from the declarations that the model was trained with, or retrain",
        )
