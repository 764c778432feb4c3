"""What a replica counts about itself; Ray exports it with its own metrics, in Prometheus' form.

On a request's way something is appended to a list; four times a second the lists become numbers.
"""

import asyncio
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray.serve import metrics

from penstock.features.online import OnlineRows
from penstock.features.online_rows import NO_EVENT_US
from penstock.features.row_cache import CacheCounts

_LATENCY_BOUNDARIES_MS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 25, 50, 100, 250, 500, 1000, 5000)
_EXPLAIN_BOUNDARIES_MS = (10, 50, 100, 250, 500, 1000, 2500, 5000, 10_000, 30_000, 60_000)
_BATCH_BOUNDARIES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_ROWS_BOUNDARIES = (1, 4, 16, 64, 256, 1024, 4096)
_MINUTE_S, _HOUR_S, _DAY_S = 60, 3600, 86_400
_AGE_BOUNDARIES_S = (
    *(1, 10, _MINUTE_S, 5 * _MINUTE_S, 15 * _MINUTE_S, _HOUR_S, 6 * _HOUR_S),
    *(_DAY_S, 2 * _DAY_S, 7 * _DAY_S, 30 * _DAY_S, 90 * _DAY_S),
)
_FLUSH_S = 0.25
PREFIX = "penstock_"
# Ray annotates tag_keys as a tuple of exactly one name, and takes any number.
_KEYS: Any = ("model", "model_version")
_MODEL_KEY: Any = ("model",)
_Batch = tuple[int, int, Sequence[OnlineRows]]
"""Number of requests, number of rows, and what was looked up for them."""


class _Distribution:
    """How large the values of something are.

    One of Ray's histograms takes a tenth of a request's time to be told of one value. Counters told
    of many at once hold the same: `histogram_quantile` reads any series with `le`.
    """

    def __init__(
        self,
        name: str,
        tags: dict[str, str],
        boundaries: Sequence[float],
        description: str,
        *,
        sum_name: str | None = None,
        label: str | None = None,
    ) -> None:
        keys = _KEYS if label is None else (*_KEYS, label)
        self._boundaries = np.array(boundaries, dtype=float)
        self._names = [*map(str, boundaries), "+Inf"]
        self._label = label
        self._buckets = _counter(f"{name}_bucket", tags, description, (*keys, "le"))
        sum_name = sum_name or f"{name}_sum"
        self._sum = _counter(sum_name, tags, f"Sum behind {name}_bucket.", keys)

    def tell(self, values: NDArray[Any], of: str | None = None) -> None:
        """Count values, those of one value of the label where there is one."""
        tags = {} if self._label is None or of is None else {self._label: of}
        places = np.searchsorted(self._boundaries, values)
        within = np.bincount(places, minlength=len(self._names)).cumsum()
        for name, number in zip(self._names, within.tolist(), strict=True):
            if number:
                self._buckets.inc(number, tags={**tags, "le": name})
        total = float(values.sum())
        if total > 0:
            self._sum.inc(total, tags=tags)


class RequestMetrics:
    """Requests of one model version: codes, latency, batches, queue, features missing and old."""

    def __init__(
        self,
        model: str,
        version: int,
        *,
        take_num_unlogged: Callable[[], int] = lambda: 0,
        caches: Mapping[str, CacheCounts] | None = None,
    ) -> None:
        """Register the series of this model version.

        Args:
            model: its name.
            version: its number.
            take_num_unlogged: gives how many predictions the log had to leave out since last asked.
            caches: what the replica's caches count, by name.
        """
        tags = {"model": model, "model_version": str(version)}
        self._requests = _counter(
            "predict_requests", tags, "Requests answered, by HTTP status.", (*_KEYS, "code")
        )
        self._latency = _Distribution(
            "predict_latency_ms",
            tags,
            _LATENCY_BOUNDARIES_MS,
            "Requests answered within `le` milliseconds of reaching the replica.",
        )
        self._batches = _counter(
            "predict_batches", tags, "Batches of requests that were looked up and scored together."
        )
        self._batch_requests = _Distribution(
            "predict_batch_requests",
            tags,
            _BATCH_BOUNDARIES,
            "Batches of at most `le` requests.",
        )
        self._batch_rows = _Distribution(
            "predict_batch_rows",
            tags,
            _ROWS_BOUNDARIES,
            "Batches of at most `le` rows.",
            sum_name="predict_rows",
        )
        self._missing = _counter(
            "predict_missing_features",
            tags,
            "Feature values that the online store did not have.",
            (*_KEYS, "feature"),
        )
        self._age = _Distribution(
            "predict_feature_age_seconds",
            tags,
            _AGE_BOUNDARIES_S,
            "Stored feature rows at most `le` seconds older than the time that was asked about.",
            label="view",
        )
        self._unlogged = _counter(
            "predict_unlogged_rows",
            tags,
            "Predictions that the log had to leave out: the disk was too slow or full.",
        )
        self._gauges = {
            name: _gauge(f"predict_requests_{name}", tags, description)
            for name, description in {
                "in_flight": "Requests that a replica has taken and not yet answered.",
                "waiting": "Requests that wait for their batch.",
            }.items()
        }
        self._take_num_unlogged = take_num_unlogged
        self._caches = dict(caches or {})
        self._told = {name: CacheCounts() for name in self._caches}
        self._hits, self._misses = (
            _counter(f"predict_cache_{kind}", tags, description, (*_KEYS, "cache"))
            for kind, description in {
                "hits": "Rows that a cache had.",
                "misses": "Rows that a cache did not have.",
            }.items()
        )
        self._queue: dict[str, Callable[[], int]] = {}
        self._answered: list[int] = []
        self._latencies_s: list[float] = []
        # A version on trial appends from its own thread.
        self._scored: deque[_Batch] = deque()
        self._flush: asyncio.TimerHandle | None = None

    def watch(self, **queue: Callable[[], int]) -> None:
        """Sample how many requests are `in_flight` and `waiting`, from now on."""
        self._queue = queue
        self._sample()

    def count(self, status: int, latency_s: float) -> None:
        """Count one answered request."""
        self._answered.append(status)
        self._latencies_s.append(latency_s)
        self.tell_soon()

    def count_batch(
        self, num_requests: int, num_rows: int, looked_up: Sequence[OnlineRows]
    ) -> None:
        """Count one batch of requests; on any thread, and the loop then calls `tell_soon`."""
        self._scored.append((num_requests, num_rows, looked_up))

    def tell_soon(self) -> None:
        """Export what was counted, in a moment."""
        if self._flush is None:
            self._flush = asyncio.get_running_loop().call_later(_FLUSH_S, self._tell)

    def _tell(self) -> None:
        self._flush = None
        if self._scored:
            self._tell_batches([self._scored.popleft() for _ in range(len(self._scored))])
        num_unlogged = self._take_num_unlogged()
        if num_unlogged:
            self._unlogged.inc(num_unlogged)
        self._tell_caches()
        for status, number in Tally(self._answered).items():
            self._requests.inc(number, tags={"code": str(status)})
        if self._latencies_s:
            self._latency.tell(np.array(self._latencies_s) * 1000)
        self._answered.clear()
        self._latencies_s.clear()
        # The last answer leads here too, so an idle replica's queue does not stay as it was.
        self._sample()

    def _tell_caches(self) -> None:
        for name, counts in self._caches.items():
            told, self._told[name] = self._told[name], replace(counts)
            now = self._told[name]
            for counter, number in (
                (self._hits, now.num_hits - told.num_hits),
                (self._misses, now.num_misses - told.num_misses),
            ):
                if number:
                    counter.inc(number, tags={"cache": name})

    def _tell_batches(self, batches: Sequence[_Batch]) -> None:
        self._batches.inc(len(batches))
        self._batch_requests.tell(np.array([batch[0] for batch in batches]))
        self._batch_rows.tell(np.array([batch[1] for batch in batches]))
        found = list(chain.from_iterable(batch[2] for batch in batches))
        absent: Tally[str] = Tally()
        # Most rows lack nothing, or the same ones.
        for names, number in Tally(chain.from_iterable(rows.missing for rows in found)).items():
            absent.update(dict.fromkeys(names, number))
        for name, number in absent.items():
            self._missing.inc(number, tags={"feature": name})
        as_of_us = np.concatenate([rows.as_of_us for rows in found])
        for view in found[0].event_us:
            event_us = np.concatenate([rows.event_us[view] for rows in found])
            is_known = event_us != NO_EVENT_US
            if is_known.any():
                ages_us = as_of_us[is_known] - event_us[is_known]
                # A request about the past gets the newest row, which is none too old.
                self._age.tell(np.maximum(ages_us, 0) / 1e6, of=view)

    def _sample(self) -> None:
        for name, number in self._queue.items():
            self._gauges[name].set(number())


class ExplainMetrics:
    """Counts a version's requests for explanations; each costs far more than its counting."""

    def __init__(self, model: str, version: int) -> None:
        """Register the series."""
        tags = {"model": model, "model_version": str(version)}
        self._requests = _counter(
            "explain_requests", tags, "Explanations answered.", (*_KEYS, "code")
        )
        self._latency = _Distribution(
            "explain_latency_ms",
            tags,
            _EXPLAIN_BOUNDARIES_MS,
            "Explanations answered within le milliseconds.",
        )

    def count(self, status: int, latency_s: float) -> None:
        """Count one answered request."""
        self._requests.inc(1, tags={"code": str(status)})
        self._latency.tell(np.array([latency_s * 1000]))


class TrialMetrics:
    """What a replica has to say of the rollout that it is part of."""

    def __init__(self, model: str, version: int) -> None:
        """Register the series of the version on trial."""
        tags = {"model": model, "model_version": str(version)}
        self._share = _gauge(
            "rollout_share_ratio", tags, "Part of the requests that the version on trial gets."
        )
        self._failed = _counter(
            "rollout_failed_requests",
            tags,
            "Requests that the version on trial failed on, or was too late with.",
        )
        self._num_told = 0

    def tell(self, *, share: float, num_failed: int) -> None:
        """Export how it stands.

        Args:
            share: of the version on trial, 0 to 1.
            num_failed: requests that it failed on, since the replica started.
        """
        self._share.set(share)
        if num_failed > self._num_told:
            self._failed.inc(num_failed - self._num_told)
            self._num_told = num_failed


class SharedMetrics:
    """What a replica that loads models as they are asked for has in memory."""

    def __init__(self) -> None:
        """Register the series."""
        self._bytes = metrics.Gauge(
            f"{PREFIX}shared_model_bytes",
            description="Memory that a model takes in a shared replica; 0: it is not loaded.",
            tag_keys=_MODEL_KEY,
        )
        self._loads, self._evictions = (
            metrics.Counter(f"{PREFIX}shared_{kind}", description=words, tag_keys=_MODEL_KEY)
            for kind, words in {
                "loads": "Times that a shared replica loaded a model.",
                "evictions": "Times that a model left a shared replica's memory for another one.",
            }.items()
        )

    def loaded(self, model: str, num_bytes: int) -> None:
        """Count a load."""
        self._loads.inc(1, tags={"model": model})
        self._bytes.set(num_bytes, tags={"model": model})

    def evicted(self, model: str) -> None:
        """Count a model that had to go."""
        self._evictions.inc(1, tags={"model": model})

    def gone(self, model: str) -> None:
        """Tell that a model takes no memory any more."""
        self._bytes.set(0, tags={"model": model})


def _counter(
    name: str, tags: dict[str, str], description: str, keys: Any = _KEYS
) -> metrics.Counter:
    made = metrics.Counter(f"{PREFIX}{name}", description=description, tag_keys=keys)
    # A dict of its own: Serve adds its tags to it.
    made.set_default_tags(dict(tags))
    return made


def _gauge(name: str, tags: dict[str, str], description: str) -> metrics.Gauge:
    made = metrics.Gauge(f"{PREFIX}{name}", description=description, tag_keys=_KEYS)
    made.set_default_tags(dict(tags))
    return made
