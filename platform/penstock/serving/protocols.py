"""What a model's paths speak: the plain protocol, Open Inference v2, and MLflow's; one pipeline."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from penstock.errors import RequestError
from penstock.registry.package import Signature
from penstock.serving import http, invocations, open_inference, openapi
from penstock.serving.requests import RequestParser, Row

_VERSION = re.compile(r"(?:/v2)?/versions/([^/]+)(?:/|$)")


@dataclass(frozen=True, kw_only=True)
class Scored:
    """The answer to one request's rows."""

    scores: np.ndarray
    """float64 [n]"""
    missing: Sequence[tuple[str, ...]]
    """[n]: the features that each row lacked."""


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How requests at a path are read and answered."""

    read: Callable[[http.Headers, bytes], tuple[list[Row], Any]]
    """Gives the rows of a body, and what else `write` must know of it."""
    write: Callable[[Scored, str, Any], http.Answer]
    """Takes the answer, the id of its predictions, and what `read` gave beside."""
    kinds: tuple[bytes, ...] = ()
    """Content types beside JSON; empty: that there is none."""


class Protocols:
    """All paths of one version of one model."""

    def __init__(
        self, *, model: str, version: int, digest: str, signature: Signature, parser: RequestParser
    ) -> None:
        """Lay the paths out, each with the version and without.

        Args:
            model: its name.
            version: the one that answers.
            digest: of its package.
            signature: its fields and its threshold.
            parser: of its fields.
        """
        self._model = model
        self._version = version
        self._digest = digest
        self._signature = signature
        self._parser = parser
        self._route = f"{http.MODEL_PREFIX}{model}"
        self._tensors = open_inference.InferReader(
            signature.request_fields, parser, outputs=tuple(self._outputs())
        )
        self.posts: dict[str, Protocol] = {}
        """Who takes rows."""
        self.pages: dict[str, Callable[[], http.Answer]] = {
            self._route: self._describe,
            f"{self._route}/openapi.json": self._describe_paths,
        }
        """Who tells of the model."""
        self.describe_more: Callable[[], dict[str, Any]] = dict
        """What the model's page tells beside."""
        plain = Protocol(read=self._read_plain, write=self._write_plain)
        mlflow = Protocol(read=self._read_invocation, write=_write_invocation)
        for base in (self._route, f"{self._route}/versions/{version}"):
            self.posts[f"{base}/predict"] = plain
            self.posts[f"{base}/invocations"] = mlflow
        # The ingress leads /v2/models/<model>/… to here.
        tensors = Protocol(
            read=self._read_tensors,
            write=self._write_tensors,
            # Triton's own client names none.
            kinds=(open_inference.BINARY, b""),
        )
        for base in (f"{self._route}/v2", f"{self._route}/v2/versions/{version}"):
            self.posts[f"{base}/infer"] = tensors
            self.pages[base] = self._describe_tensors
            self.pages[f"{base}/ready"] = _say_ready

    def unknown(self, path: str) -> RequestError:
        """Build the refusal of a path that none of these is."""
        found = _VERSION.match(path.removeprefix(self._route))
        if found is not None and found[1] != str(self._version):
            return RequestError(
                404,
                "unknown_version",
                f"version {found[1][:50]!a} of {self._model} is not served; "
                f"version {self._version} is",
            )
        return http.unknown_path(path)

    def _describe(self) -> http.Answer:
        fields = [field.model_dump() for field in self._signature.request_fields]
        body = {
            "model": self._model,
            "version": self._version,
            "digest": self._digest,
            "estimator": self._signature.estimator,
            "feature_service": self._signature.feature_service,
            "feature_names": self._signature.feature_names,
            "request_fields": fields,
            "threshold": self._signature.threshold,
            "predict": f"{self._route}/predict",
            **self.describe_more(),
        }
        return http.Answer(status=200, body=orjson.dumps(body))

    def _describe_paths(self) -> http.Answer:
        described = openapi.document(
            route=self._route,
            version=self._version,
            signature=self._signature,
            max_rows=self._signature.serving.max_rows_per_request,
        )
        return http.Answer(status=200, body=orjson.dumps(described))

    def _describe_tensors(self) -> http.Answer:
        fields = self._signature.request_fields
        return open_inference.metadata(self._model, self._version, fields, outputs=self._outputs())

    def _read_plain(self, _headers: http.Headers, body: bytes) -> tuple[list[Row], None]:
        return self._parser.parse(body), None

    def _write_plain(self, scored: Scored, prediction_id: str, _beside: None) -> http.Answer:
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
        document = {"model": self._model, "version": self._version, "predictions": predictions}
        return http.Answer(status=200, body=orjson.dumps(document))

    def _read_invocation(self, _headers: http.Headers, body: bytes) -> tuple[list[Row], None]:
        return invocations.read(self._parser, body), None

    def _read_tensors(
        self, headers: http.Headers, body: bytes
    ) -> tuple[list[Row], open_inference.InferRequest]:
        request = self._tensors.read(headers, body)
        return request.rows, request

    def _outputs(self) -> dict[str, str]:
        """The tensors of an answer, and what they hold."""
        label = {} if self._signature.threshold is None else {"label": "INT64"}
        return {"score": "FP64", **label, "num_missing_features": "INT64", "prediction_id": "BYTES"}

    def _write_tensors(
        self, scored: Scored, prediction_id: str, request: open_inference.InferRequest
    ) -> http.Answer:
        scores, threshold = scored.scores, self._signature.threshold
        tensors: dict[str, open_inference.Tensor] = {
            "score": scores,
            "num_missing_features": np.array([len(names) for names in scored.missing]),
            "prediction_id": [f"{prediction_id}-{index}" for index in range(len(scores))],
        }
        if threshold is not None:
            tensors["label"] = (scores >= threshold).astype(np.int64)
        ordered = {name: tensors[name] for name in self._outputs()}
        return open_inference.answer(request, ordered, model=self._model, version=self._version)


def _write_invocation(scored: Scored, _prediction_id: str, _beside: None) -> http.Answer:
    return invocations.answer(scored.scores.tolist())


def _say_ready() -> http.Answer:
    return http.Answer(status=200, body=b"")
