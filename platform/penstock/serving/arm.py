"""One version of a model, loaded: its features are read, its graph runs, its predictions logged."""

import time
from collections.abc import Callable, Generator, Sequence
from pathlib import Path

import numpy as np

from penstock.errors import IntegrityError, RequestError
from penstock.features.online import OnlineReader, OnlineRows
from penstock.registry.package import VerifiedPackage, verify
from penstock.serving.metrics import RequestMetrics
from penstock.serving.prediction_log import (
    AnsweredBatch,
    Asked,
    PredictionLog,
    SegmentHeader,
    log_folder,
)
from penstock.serving.predictor import Predictor
from penstock.serving.protocols import Protocols, Scored
from penstock.serving.requests import RequestParser, Row
from penstock.serving.score_cache import ScoreCache
from penstock.settings import Settings

NO_SCORE = "no_score"
"""The code of a refusal where the model gives no finite number."""
_ROWS_PER_STEP = 512


class Arm:
    """A verified version in a replica's memory, ready to score."""

    _log: PredictionLog | None = None

    def __init__(
        self,
        settings: Settings,
        *,
        package_path: str,
        digest: str,
        max_body_bytes: int,
        is_shadow: bool = False,
    ) -> None:
        """Verify the package, load it, and predict once.

        Args:
            settings: which online store, which keys.
            package_path: the version's folder.
            digest: which the package must have.
            max_body_bytes: of a request.
            is_shadow: nobody gets its answers, and its log says so.

        Raises:
            IntegrityError: the package is not the registered one, or can't predict.
        """
        package = verify(Path(package_path), settings, digest=digest)
        self.signature = package.signature
        self.version = package.manifest.version
        self.digest = digest
        self.package_path = package_path
        self._predictor = Predictor(package)
        self._predictor.check_golden_row()
        policy = package.signature.serving
        self._reader = open_reader(settings, package)
        self._predict: Callable[[np.ndarray], np.ndarray] = self._predictor.predict
        caches = {"features": self._reader.cache_counts}
        if policy.score_cache_rows:
            self._predict = scores = ScoreCache(self._predictor.predict, policy.score_cache_rows)
            caches["scores"] = scores.counts
        self.protocols = Protocols(
            model=package.signature.model,
            version=self.version,
            digest=digest,
            signature=package.signature,
            parser=RequestParser(
                package.signature.request_fields,
                feature_names=package.signature.feature_names,
                max_rows=package.signature.serving.max_rows_per_request,
                max_body_bytes=max_body_bytes,
            ),
        )
        if settings.serving.log_predictions:
            self._log = _open_log(settings, package, self._reader, is_shadow=is_shadow)
        self.metrics = RequestMetrics(
            package.signature.model,
            self.version,
            take_num_unlogged=self._log.take_num_dropped if self._log else lambda: 0,
            caches={name: counts for name, counts in caches.items() if counts is not None},
        )

    def close(self) -> None:
        """Write what the log still holds."""
        log, self._log = self._log, None
        if log is not None:
            log.close()

    async def logged(self) -> None:
        """Wait until what was answered by now is in the log, or was left out of it."""
        if self._log is not None:
            await self._log.caught_up()

    def check_health(self) -> None:
        """Predict once.

        Raises:
            IntegrityError: it no longer can.
        """
        self._predictor.check_golden_row()

    def look_up(self, rows: Sequence[Row]) -> OnlineRows:
        """Look the features of rows up, and nothing else.

        Raises:
            StoreEmptyError: the online store came back empty.
        """
        return self._reader.read(rows)

    def scoring(self, requests: Sequence[Asked]) -> Generator[None, None, Scored]:
        """Look up and score the rows of requests, in steps: between two the caller may do others.

        Returns:
            the scores of all rows, one request's after the other's.
        """
        rows = [row for request in requests for row in request.rows]
        scores, missing, found = [], [], []
        for start in range(0, len(rows), _ROWS_PER_STEP):
            if start:
                yield
            looked_up = self._reader.read(rows[start : start + _ROWS_PER_STEP])
            scores.append(self._predict(looked_up.values))
            missing += looked_up.missing
            found.append(looked_up)
        self.metrics.count_batch(len(requests), len(rows), found)
        all_scores = scores[0] if len(scores) == 1 else np.concatenate(scores)
        if self._log is not None:
            self._log.put(AnsweredBatch.of(time.time_ns() // 1_000, requests, found, all_scores))
        return Scored(scores=all_scores, missing=missing)


def split(scored: Scored, requests: Sequence[Asked]) -> list[Scored | RequestError]:
    """Give each request its part; a refusal to one that has a score that is no finite number."""
    answers: list[Scored | RequestError] = []
    start = 0
    for request in requests:
        end = start + len(request.rows)
        part = Scored(scores=scored.scores[start:end], missing=scored.missing[start:end])
        answers.append(check_finite(part))
        start = end
    return answers


def check_finite(scored: Scored) -> Scored | RequestError:
    """Give the answer, or the refusal of one without finite scores."""
    finite = np.isfinite(scored.scores)
    if finite.all():
        return scored
    row = int(np.argmin(finite))
    return RequestError(
        422, NO_SCORE, "the model has no finite score for this row", path=f"$.rows[{row}]"
    )


def _open_log(
    settings: Settings, package: VerifiedPackage, reader: OnlineReader, *, is_shadow: bool
) -> PredictionLog:
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
        is_shadow=is_shadow,
    )
    root = log_folder(settings, signature.use_case)
    return PredictionLog(root, header, max_bytes=settings.serving.prediction_log_bytes)


def open_reader(settings: Settings, package: VerifiedPackage) -> OnlineReader:
    """Open the online store for a version's features.

    Raises:
        IntegrityError: they are no longer declared as the version was trained on them.
    """
    signature = package.signature
    reader = OnlineReader.open(
        settings,
        signature.use_case,
        signature.feature_service,
        cache_s=signature.serving.feature_cache_s,
    )
    declared = signature.feature_names
    if tuple(reader.feature_names) != declared:
        raise IntegrityError(
            f"the feature service {signature.feature_service} now gives "
            f"{', '.join(reader.feature_names)}",
            allowed=f"what the model was trained on: {', '.join(declared)}",
            next_step="deploy from the declarations that the model was trained with, or retrain",
        )
    return reader
