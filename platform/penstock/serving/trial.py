"""The second version in a replica during a rollout: it answers its share, and can cost nobody.

It works on a thread of its own. What it fails on, or is too late with, the first version answers;
so a version that breaks, gives NaN or hangs is a number in a report, and no lost request.
"""

import asyncio
import threading
import time
import uuid
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from penstock.errors import RequestError
from penstock.records import Record
from penstock.serving import http, rollout_files
from penstock.serving.arm import Arm, check_finite, split
from penstock.serving.arm_counts import ArmCounts, latency_bucket
from penstock.serving.batching import Batcher
from penstock.serving.metrics import TrialMetrics
from penstock.serving.prediction_log import Asked
from penstock.serving.protocols import Scored
from penstock.serving.requests import Row
from penstock.serving.rollout import NUM_BUCKETS, bucket
from penstock.settings import Settings

_MAX_SHADOWED = 64
"""Requests whose second score may be waited for at one time; those beyond are not shadowed."""


class TrialArguments(Record):
    """What a replica must know of a rollout."""

    rollout_id: str
    is_shadow: bool
    split_by: str
    answer_within_ms: float
    version: int
    digest: str
    package_path: str


class _Tally:
    """`ArmCounts` in the making: one thread adds, another reads."""

    def __init__(self) -> None:
        self._numbers: defaultdict[str, float] = defaultdict(float)
        self._latencies: Counter[int] = Counter()

    def add(self, **numbers: float) -> None:
        for name, number in numbers.items():
            self._numbers[name] += number

    def answered(self, scored: Scored, latency_s: float) -> None:
        scores = scored.scores
        self.add(
            num_answers=1,
            num_rows=len(scores),
            num_rows_missing=sum(map(bool, scored.missing)),
            sum_score=float(scores.sum()),
            sum_score_squared=float(scores @ scores),
        )
        self._latencies[latency_bucket(latency_s * 1000)] += 1

    def now(self) -> ArmCounts:
        # Copied first: a dict that grows can't be walked through.
        numbers, latencies = dict(self._numbers), dict(self._latencies)
        return ArmCounts.model_validate({**numbers, "latencies": latencies})


class Trial:
    """A replica's side of a rollout."""

    def __init__(
        self, settings: Settings, arguments: TrialArguments, old: Arm, *, max_body_bytes: int
    ) -> None:
        """Load the second version, and follow the rollout's file from now on.

        Raises:
            IntegrityError: its package is not the registered one, or can't predict.
        """
        self._settings = settings
        self._arguments = arguments
        self._model = old.signature.model
        self._threshold = old.signature.threshold
        self.arm = Arm(
            settings,
            package_path=arguments.package_path,
            digest=arguments.digest,
            max_body_bytes=max_body_bytes,
            is_shadow=arguments.is_shadow,
        )
        self._within_s = arguments.answer_within_ms / 1000
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="trial")
        policy = self.arm.signature.serving
        self._batcher = Batcher(
            self._run, max_batch_size=policy.max_batch_size, wait_s=policy.batch_wait_s
        )
        self.arm.metrics.watch(waiting=lambda: self._batcher.num_waiting)
        self._metrics = TrialMetrics(self._model, self.arm.version)
        self._new, self._old = _Tally(), _Tally()
        self._num_buckets = 0
        self._is_running = self._hangs = False
        self._shadows: set[asyncio.Task[None]] = set()
        self._replica = uuid.uuid4().hex
        self._closing = threading.Event()
        threading.Thread(target=self._follow, name="rollout", daemon=True).start()

    def close(self) -> None:
        """Stop following, and let go."""
        self._closing.set()
        self._pool.shutdown(wait=False, cancel_futures=True)
        self.arm.close()

    async def logged(self) -> None:
        """Wait until what was answered by now is in the log."""
        await self.arm.logged()

    def describe(self) -> dict[str, object]:
        """Say what goes on, for the model's page."""
        return {
            "id": self._arguments.rollout_id,
            "version": self.arm.version,
            "is_shadow": self._arguments.is_shadow,
            "percent": 100 * self._num_buckets / NUM_BUCKETS,
        }

    def takes(self, rows: Sequence[Row]) -> bool:
        """Say whether the second version answers a request: by the value in its first row."""
        if not self._num_buckets:
            return False
        value = rows[0][self._arguments.split_by]
        return bucket(self._arguments.rollout_id, value) < self._num_buckets

    async def answer(self, asked: Asked) -> Scored | None:
        """Score by the second version; None: it failed, or is late, and the first must answer."""
        started_s = time.perf_counter()
        if self._hangs:
            self._new.add(num_errors=1)
            return None
        try:
            async with asyncio.timeout(self._within_s):
                scored = await self._batcher.submit(asked)
        except TimeoutError:
            # Where nothing runs, nothing would come back that ends a hang: it was only late.
            self._hangs = self._is_running
            scored = None
        except Exception:  # noqa: BLE001 - whatever it meets, the first version answers
            scored = None
        if not isinstance(scored, Scored):
            self._new.add(num_errors=1)
            return None
        self._new.answered(scored, time.perf_counter() - started_s)
        return scored

    def answered_by_old(self, asked: Asked, scored: Scored, latency_s: float) -> None:
        """Count an answer of the first version, and let a shadow score the same rows."""
        self._old.answered(scored, latency_s)
        if self._arguments.is_shadow and len(self._shadows) < _MAX_SHADOWED:
            task = asyncio.get_running_loop().create_task(self._shadow(asked, scored.scores))
            self._shadows.add(task)
            task.add_done_callback(self._shadows.discard)

    async def _shadow(self, asked: Asked, old_scores: np.ndarray) -> None:
        scored = await self.answer(asked)
        if scored is None:
            return
        distance = float(np.abs(scored.scores - old_scores).sum())
        self._new.add(num_pairs=len(old_scores), sum_difference=distance)
        if self._threshold is not None:
            flips = (scored.scores >= self._threshold) != (old_scores >= self._threshold)
            self._new.add(num_flips=int(flips.sum()))

    async def _run(self, requests: Sequence[Asked]) -> list[Scored | RequestError]:
        loop = asyncio.get_running_loop()
        self._is_running = True
        try:
            return await loop.run_in_executor(self._pool, self._score, requests)
        finally:
            self._is_running = self._hangs = False
            # A shadow answers nobody, so no answer leads there.
            self.arm.metrics.tell_soon()

    def _score(self, requests: Sequence[Asked]) -> list[Scored | RequestError]:
        try:
            return split(self._score_rows(requests), requests)
        except Exception:
            http.logger.exception("version %d failed, on trial", self.arm.version)
            if len(requests) == 1:
                raise
        answers: list[Scored | RequestError] = []
        for request in requests:
            try:
                answers.append(check_finite(self._score_rows([request])))
            except Exception:  # noqa: BLE001 - one poisonous request must not fail its neighbours
                answers.append(RequestError(503, "internal", "the version on trial failed"))
        return answers

    def _score_rows(self, requests: Sequence[Asked]) -> Scored:
        steps = self.arm.scoring(requests)
        while True:
            try:
                next(steps)
            except StopIteration as done:
                scored: Scored = done.value
                return scored

    def _follow(self) -> None:
        while not self._closing.wait(rollout_files.LOOK_S):
            try:
                share = self._num_buckets / NUM_BUCKETS
                self._metrics.tell(share=share, num_failed=self._new.now().num_errors)
                self._look()
            except Exception:  # noqa: BLE001 - it looks again in a moment
                # Who can't read how a rollout stands gives the new version nothing.
                self._num_buckets = 0
                http.logger.exception("the rollout of %s can't be followed", self._model)

    def _look(self) -> None:
        arguments = self._arguments
        rollout = rollout_files.find(self._settings, self._model)
        is_ours = rollout is not None and rollout.id == arguments.rollout_id
        percent = rollout.share_at(rollout_files.now()) if rollout and is_ours else 0.0
        self._num_buckets = round(percent / 100 * NUM_BUCKETS)
        if rollout is not None and is_ours and not rollout.is_over:
            told = rollout_files.Report(
                replica=self._replica, new=self._new.now(), old=self._old.now()
            )
            rollout_files.report(self._settings, self._model, arguments.rollout_id, told)
