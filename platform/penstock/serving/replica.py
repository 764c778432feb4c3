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
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import orjson

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


@dataclass(frozen=True, kw_only=True)
class _Scored:
    """The answer of the batch for one request's rows."""

    scores: np.ndarray
    missing: Sequence[tuple[str, ...]]


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
        self._parser = RequestParser(
            package.signature.request_fields,
            max_rows=self._policy.max_rows_per_request,
            max_body_bytes=self._arguments.max_body_bytes,
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
        self._route = f"/v1/models/{self._arguments.model}"
        self._predict_paths = {
            f"{self._route}/predict",
            f"{self._route}/versions/{self._arguments.version}/predict",
        }
        if settings.serving.log_predictions:
            self._log = _open_log(settings, package, self._reader)
        self._metrics = RequestMetrics(
            self._arguments.model,
            self._arguments.version,
            take_num_unlogged=self._log.take_num_dropped if self._log else lambda: 0,
        )
        if self._policy.min_replicas == self._policy.max_replicas:
            shortcut.take(frozenset(self._predict_paths), http.AsgiApp(self.handle))
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
        if path in self._predict_paths:
            if scope["method"] != "POST":
                return http.method_answer(scope["method"], "POST")
            return await self._predict(scope, receive)
        if path == self._route:
            if scope["method"] not in ("GET", "HEAD"):
                return http.method_answer(scope["method"], "GET")
            return self._describe()
        raise self._unknown(path)

    def _unknown(self, path: str) -> RequestError:
        wanted = path.removeprefix(f"{self._route}/versions/")
        if wanted != path and wanted.endswith("/predict"):
            version = wanted.removesuffix("/predict")
            return RequestError(
                404,
                "unknown_version",
                f"version {version[:50]!a} of {self._arguments.model} is not served; "
                f"version {self._arguments.version} is",
            )
        return http.unknown_path(path)

    def _describe(self) -> http.Answer:
        fields = [field.model_dump() for field in self._signature.request_fields]
        body = {
            "model": self._arguments.model,
            "version": self._arguments.version,
            "digest": self._arguments.digest,
            "estimator": self._signature.estimator,
            "feature_service": self._signature.feature_service,
            "feature_names": self._signature.feature_names,
            "request_fields": fields,
            "threshold": self._signature.threshold,
            "predict": f"{self._route}/predict",
        }
        return http.Answer(status=200, body=orjson.dumps(body))

    async def _predict(self, scope: http.Scope, receive: http.Receive) -> http.Answer:
        headers = scope["headers"]
        if self._num_requests >= self._max_requests:
            raise _overloaded(f"{self._num_requests} requests are in flight")
        self._num_requests += 1
        num_rows = 0
        try:
            http.check_json(headers)
            body = await http.read_body(headers, receive, max_bytes=self._max_body_bytes)
            rows = self._parser.parse(body)
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
        return self._write(scored, asked.prediction_id)

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

    def _write(self, scored: _Scored, prediction_id: str) -> http.Answer:
        threshold = self._signature.threshold
        predictions = []
        for index, (score, missing) in enumerate(
            zip(scored.scores.tolist(), scored.missing, strict=True)
        ):
            prediction: dict[str, Any] = {
                "prediction_id": f"{prediction_id}-{index}",
                "score": score,
            }
            if threshold is not None:
                prediction["label"] = int(score >= threshold)
            prediction["missing"] = missing
            predictions.append(prediction)
        document = {
            "model": self._arguments.model,
            "version": self._arguments.version,
            "predictions": predictions,
        }
        return http.Answer(status=200, body=orjson.dumps(document))

    async def _score(self, requests: Sequence[Asked]) -> list[_Scored | RequestError]:
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
        answers: list[_Scored | RequestError] = []
        start = 0
        for request in requests:
            end = start + len(request.rows)
            part = _Scored(scores=scored.scores[start:end], missing=scored.missing[start:end])
            answers.append(self._check_finite(part))
            start = end
        return answers

    async def _score_alone(self, request: Asked) -> _Scored | RequestError:
        try:
            return self._check_finite(await self._score_rows([request]))
        except Exception:  # noqa: BLE001 - whatever one request meets, its neighbours are answered
            http.logger.exception("a request failed in the model or the feature store")
            return RequestError(503, "internal", "the server failed on this request; it is logged")

    async def _score_rows(self, requests: Sequence[Asked]) -> _Scored:
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
        return _Scored(scores=all_scores, missing=missing)

    def _check_finite(self, scored: _Scored) -> _Scored | RequestError:
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
