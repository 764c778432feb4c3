import asyncio
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from ray.serve import metrics as vendor

from penstock.features.online import OnlineRows
from penstock.features.online_rows import NO_EVENT_US
from penstock.features.row_cache import CacheCounts
from penstock.serving.metrics import RequestMetrics, TrialMetrics

DAY_US = 86_400_000_000


class Series:
    """Stands where Ray's agent would: keeps what was counted, by metric and its last tag."""

    def __init__(self, told: Counter, name: str):
        self.told, self.name = told, name

    def set_default_tags(self, tags: dict[str, str]) -> None: ...

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "Ray refuses to count nothing"
        self.told[self.name, *(tags or {}).values()] += value

    def set(self, value: float) -> None:
        self.told[self.name,] = value


def looked_up(*missing: tuple[str, ...], ages_us: Sequence[int] = ()) -> OnlineRows:
    """Rows by the names of their missing features; the last of them by the age of their riders."""
    event_us = np.full(len(missing), NO_EVENT_US)
    as_of_us = np.full(len(missing), 100 * DAY_US)
    if ages_us:
        event_us[-len(ages_us) :] = 100 * DAY_US - np.array(ages_us)
    event_us_of = {"riders": event_us, "cities": np.full(len(missing), NO_EVENT_US)}
    return OnlineRows(np.zeros((len(missing), 2)), list(missing), {}, as_of_us, event_us_of)


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counted: Counter = Counter()
    for kind in ("Counter", "Gauge"):
        monkeypatch.setattr(vendor, kind, lambda name, **_: Series(counted, name))
    return counted


def test_requests_are_counted_by_code_and_within_each_latency(told: Counter):
    async def answer() -> None:
        metrics = RequestMetrics("m", 1)
        for status, latency_s in ((200, 0.0004), (200, 0.0025), (422, 0.0025), (200, 60.0)):
            metrics.count(status, latency_s)
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert told["penstock_predict_requests", "200"] == 3
    assert told["penstock_predict_requests", "422"] == 1
    bucket = "penstock_predict_latency_ms_bucket"
    assert [told[bucket, le] for le in ("0.5", "2", "3", "5000", "+Inf")] == [1, 1, 3, 3, 4]
    assert told["penstock_predict_latency_ms_sum",] == pytest.approx(60_005.4)


def test_batches_rows_and_missing_features_are_told_with_the_answers(told: Counter):
    async def answer() -> None:
        metrics = RequestMetrics("m", 1)
        metrics.count_batch(2, 3, [looked_up(("a", "b"), ()), looked_up(("a",))])
        metrics.count_batch(1, 1, [looked_up(())])
        metrics.count(200, 0.001)
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert told["penstock_predict_batches",] == 2
    assert told["penstock_predict_rows",] == 4
    assert told["penstock_predict_missing_features", "a"] == 2
    assert told["penstock_predict_missing_features", "b"] == 1
    requests, rows = "penstock_predict_batch_requests_bucket", "penstock_predict_batch_rows_bucket"
    assert [told[requests, le] for le in ("1", "2", "4", "+Inf")] == [1, 2, 2, 2]
    assert told["penstock_predict_batch_requests_sum",] == 3
    assert [told[rows, le] for le in ("1", "4", "+Inf")] == [1, 2, 2]


def test_features_are_as_old_as_their_row_was_at_the_time_that_was_asked_about(told: Counter):
    async def answer() -> None:
        metrics = RequestMetrics("m", 1)
        ages_us = (0, 2_000_000, 3 * DAY_US, -DAY_US)
        metrics.count_batch(1, 5, [looked_up((), (), (), (), (), ages_us=ages_us)])
        metrics.tell_soon()
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    bucket = "penstock_predict_feature_age_seconds_bucket"
    found = [told[bucket, "riders", le] for le in ("1", "10", "172800", "604800", "+Inf")]
    assert found == [2, 3, 3, 4, 4], "an unknown entity has no age, a request about the past has 0"
    assert told["penstock_predict_feature_age_seconds_sum", "riders"] == 2 + 3 * 86_400
    assert not [key for key in told if "cities" in key]


def test_the_queue_is_sampled_behind_the_last_answer(told: Counter):
    waiting = [7, 3, 0]

    async def answer() -> None:
        metrics = RequestMetrics("m", 1)
        metrics.watch(waiting=lambda: waiting.pop(0))
        sampled = [told["penstock_predict_requests_waiting",]]
        for _ in range(2):
            metrics.count(200, 0.001)
            await asyncio.sleep(0.35)
            sampled.append(told["penstock_predict_requests_waiting",])
        assert sampled == [7, 3, 0]

    asyncio.run(answer())


def test_a_rollout_tells_its_share_and_each_failure_once(told: Counter):
    metrics = TrialMetrics("m", 2)
    for share, num_failed in ((0.05, 0), (0.25, 3), (0.0, 4), (0.0, 4)):
        metrics.tell(share=share, num_failed=num_failed)
    assert told["penstock_rollout_failed_requests",] == 4
    assert told["penstock_rollout_share_ratio",] == 0


def test_what_caches_had_and_had_not_is_told_once(told: Counter):
    counts = CacheCounts(num_hits=5, num_misses=2)

    async def answer() -> None:
        metrics = RequestMetrics("m", 1, caches={"features": counts})
        for _ in range(2):
            metrics.count(200, 0.001)
            await asyncio.sleep(0.35)
        counts.num_hits += 3
        metrics.count(200, 0.001)
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert told["penstock_predict_cache_hits", "features"] == 8
    assert told["penstock_predict_cache_misses", "features"] == 2


def test_where_all_is_refused_no_batch_is_told(told: Counter):
    async def answer() -> None:
        RequestMetrics("m", 1).count(422, 0.001)
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert ("penstock_predict_batches",) not in told
    assert told["penstock_predict_requests", "422"] == 1


def test_predictions_that_the_log_left_out_are_told_once(told: Counter):
    left_out = [3, 0]

    async def answer() -> None:
        metrics = RequestMetrics("m", 1, take_num_unlogged=lambda: left_out.pop(0))
        for _ in range(2):
            metrics.count(200, 0.001)
            await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert left_out == []
    assert told["penstock_predict_unlogged_rows",] == 3
