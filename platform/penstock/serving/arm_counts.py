"""What one version did in a rollout, in numbers that add up over replicas."""

import math
from bisect import bisect_left
from collections.abc import Iterable
from typing import Self

from pydantic import Field

from penstock.records import Record

_FIRST_MS, _RATIO = 0.1, 1.05
BOUNDS_MS: tuple[float, ...] = tuple(_FIRST_MS * _RATIO**power for power in range(280))
"""Upper ends of the latency buckets, each 5 % above the last: 0.1 ms to a minute and a half."""


class ArmCounts(Record):
    """Of one version, since its replica started or between two looks."""

    num_answers: int = 0
    num_errors: int = 0
    """Requests that it failed on, or was too late with: the old version answered them."""
    num_rows: int = 0
    num_rows_missing: int = 0
    """Rows that lacked at least one feature."""
    sum_score: float = 0.0
    sum_score_squared: float = 0.0
    num_pairs: int = 0
    """Rows that both versions scored."""
    sum_difference: float = 0.0
    """Of the distances of both scores of a row."""
    num_flips: int = 0
    """Rows that the two decide differently."""
    latencies: dict[int, int] = Field(default_factory=dict)
    """Answers by bucket: a place in BOUNDS_MS, or its length for those beyond."""

    def minus(self, before: Self) -> Self:
        """Give what came since."""
        return self._combined(before, -1)

    def plus(self, other: Self) -> Self:
        """Give both together."""
        return self._combined(other, 1)

    def _combined(self, other: Self, sign: int) -> Self:
        values = {
            name: getattr(self, name) + sign * getattr(other, name)
            for name in type(self).model_fields
            if name != "latencies"
        }
        buckets = {
            place: self.latencies.get(place, 0) + sign * other.latencies.get(place, 0)
            for place in self.latencies.keys() | other.latencies.keys()
        }
        full = {place: number for place, number in buckets.items() if number}
        return type(self)(latencies=full, **values)

    @classmethod
    def total(cls, parts: Iterable[Self]) -> Self:
        """Add up what replicas counted."""
        found = cls()
        for part in parts:
            found = found.plus(part)
        return found

    @property
    def mean_score(self) -> float:
        """Of all rows; 0 where there is none."""
        return self.sum_score / self.num_rows if self.num_rows else 0.0

    @property
    def score_deviation(self) -> float:
        """Of all rows' scores."""
        if not self.num_rows:
            return 0.0
        variance = self.sum_score_squared / self.num_rows - self.mean_score**2
        return math.sqrt(max(variance, 0.0))

    def num_slower_than(self, limit_ms: float) -> int:
        """Count the answers that took longer, for sure: those of the limit's own bucket did not."""
        place = bisect_left(BOUNDS_MS, limit_ms)
        return sum(number for at, number in self.latencies.items() if at > place)

    def latency_ms(self, quantile: float) -> float:
        """Give a quantile of the latency, as the upper end of its bucket; NaN without answers."""
        total = sum(self.latencies.values())
        seen = 0
        for place in sorted(self.latencies):
            seen += self.latencies[place]
            if seen >= quantile * total:
                return BOUNDS_MS[place] if place < len(BOUNDS_MS) else math.inf
        return math.nan


def latency_bucket(latency_ms: float) -> int:
    """Find the bucket of a latency."""
    return bisect_left(BOUNDS_MS, latency_ms)
