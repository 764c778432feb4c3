"""What a replica counts about itself; Ray exports it with its own metrics, in Prometheus' form."""

import asyncio
from bisect import bisect_left
from collections import Counter as Tally
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any

from ray.serve import metrics

_LATENCY_BOUNDARIES_MS: list[float] = [
    0.5,
    1,
    2,
    3,
    5,
    7.5,
    10,
    15,
    25,
    50,
    100,
    250,
    500,
    1000,
    5000,
]
_FLUSH_S = 0.25
PREFIX = "penstock_"


class RequestMetrics:
    """Requests by code, their latency, batch sizes and missing features of one model version."""

    def __init__(
        self, model: str, version: int, *, take_num_unlogged: Callable[[], int] = lambda: 0
    ) -> None:
        """Register the series of this model version.

        Args:
            model: its name.
            version: its number.
            take_num_unlogged: gives how many predictions the log had to leave out since last asked.
        """
        tags = {"model": model, "model_version": str(version)}
        # Ray annotates tag_keys as a tuple of exactly one name, and takes any number.
        keys: Any = ("model", "model_version")
        self._requests = metrics.Counter(
            f"{PREFIX}predict_requests",
            description="Requests answered, by HTTP status.",
            tag_keys=(*keys, "code"),
        )
        # One of Ray's histograms takes a tenth of a request's time to be told of it. Counters told
        # four times a second hold the same: histogram_quantile reads any series with `le`.
        self._latency_buckets = metrics.Counter(
            f"{PREFIX}predict_latency_ms_bucket",
            description="Requests answered within `le` milliseconds of reaching the replica.",
            tag_keys=(*keys, "le"),
        )
        self._latency_sum = metrics.Counter(
            f"{PREFIX}predict_latency_ms_sum",
            description="Milliseconds that answered requests took in the replica, together.",
            tag_keys=keys,
        )
        self._batches = metrics.Counter(
            f"{PREFIX}predict_batches",
            description="Batches of requests that were looked up and scored together.",
            tag_keys=keys,
        )
        self._rows = metrics.Counter(
            f"{PREFIX}predict_rows", description="Rows scored.", tag_keys=keys
        )
        self._missing = metrics.Counter(
            f"{PREFIX}predict_missing_features",
            description="Feature values that the online store did not have.",
            tag_keys=(*keys, "feature"),
        )
        self._unlogged = metrics.Counter(
            f"{PREFIX}predict_unlogged_rows",
            description="Predictions that the log had to leave out: the disk was too slow or full.",
            tag_keys=keys,
        )
        self._take_num_unlogged = take_num_unlogged
        for metric in (
            self._requests,
            self._latency_buckets,
            self._latency_sum,
            self._batches,
            self._rows,
            self._missing,
            self._unlogged,
        ):
            # A dict of its own: Serve adds its tags to it.
            metric.set_default_tags(dict(tags))
        self._answered: Tally[int] = Tally()
        self._by_bucket = [0] * (len(_LATENCY_BOUNDARIES_MS) + 1)
        self._sum_ms = 0.0
        self._num_batches = 0
        self._num_rows = 0
        self._absent: Tally[str] = Tally()
        self._flush: asyncio.TimerHandle | None = None

    def count(self, status: int, latency_s: float) -> None:
        """Count one answered request."""
        latency_ms = latency_s * 1000
        self._answered[status] += 1
        self._by_bucket[bisect_left(_LATENCY_BOUNDARIES_MS, latency_ms)] += 1
        self._sum_ms += latency_ms
        if self._flush is None:
            # Every batch ends in answers, so this tells of batches and rows too.
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._tell)

    def _tell(self) -> None:
        self._flush = None
        if self._num_batches:
            self._batches.inc(self._num_batches)
            self._rows.inc(self._num_rows)
        for name, number in self._absent.items():
            self._missing.inc(number, tags={"feature": name})
        self._num_batches = self._num_rows = 0
        self._absent.clear()
        num_unlogged = self._take_num_unlogged()
        if num_unlogged:
            self._unlogged.inc(num_unlogged)
        for status, number in self._answered.items():
            self._requests.inc(number, tags={"code": str(status)})
        labels = [*map(str, _LATENCY_BOUNDARIES_MS), "+Inf"]
        for label, number in zip(labels, accumulate(self._by_bucket), strict=True):
            if number:
                self._latency_buckets.inc(number, tags={"le": label})
        self._latency_sum.inc(self._sum_ms)
        self._answered.clear()
        self._by_bucket = [0] * len(labels)
        self._sum_ms = 0.0

    def count_batch(self, missing: Sequence[tuple[str, ...]]) -> None:
        """Count one batch of rows, each given by the names of its missing features."""
        self._num_batches += 1
        self._num_rows += len(missing)
        for names in missing:
            if names:
                self._absent.update(names)
