import asyncio
from collections import Counter

import pytest
from ray.serve import metrics as vendor

from penstock.serving.metrics import RequestMetrics


class Series:
    """Stands where Ray's agent would: keeps what was counted, by metric and its last tag."""

    def __init__(self, told: Counter, name: str):
        self.told, self.name = told, name

    def set_default_tags(self, tags: dict[str, str]) -> None: ...

    def inc(self, value: float, tags: dict[str, str] | None = None) -> None:
        assert value > 0, "Ray refuses to count nothing"
        self.told[self.name, *(tags or {}).values()] += value

    observe = inc


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> Counter:
    counted: Counter = Counter()
    for kind in ("Counter", "Histogram"):
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
        metrics.count_batch([("a", "b"), (), ("a",)])
        metrics.count_batch([()])
        metrics.count(200, 0.001)
        await asyncio.sleep(0.35)

    asyncio.run(answer())
    assert told["penstock_predict_batches",] == 2
    assert told["penstock_predict_rows",] == 4
    assert told["penstock_predict_missing_features", "a"] == 2
    assert told["penstock_predict_missing_features", "b"] == 1


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
