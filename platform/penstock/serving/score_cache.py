"""Scores kept by the features that they were made from: a model gives the same ones again.

Nothing in it can be out of date: it belongs to one version, and what a row's features are is looked
up each time.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from penstock.features.row_cache import CacheCounts


@dataclass
class ScoreCache:
    """Stands before a model. One batch at a time."""

    predict: Callable[[np.ndarray], np.ndarray]
    """float64 [n, F] to float64 [n]."""
    max_rows: int
    """The row that came first goes first."""
    counts: CacheCounts = field(default_factory=CacheCounts)
    _kept: dict[bytes, float] = field(default_factory=dict)

    def __call__(self, features: np.ndarray) -> np.ndarray:
        """Score rows, and run those that are new."""
        keys = [row.tobytes() for row in features]
        found = [self._kept.get(key) for key in keys]
        absent = [place for place, score in enumerate(found) if score is None]
        self.counts.num_hits += len(keys) - len(absent)
        self.counts.num_misses += len(absent)
        if absent:
            for place, score in zip(absent, self.predict(features[absent]).tolist(), strict=True):
                found[place] = self._kept[keys[place]] = score
            while len(self._kept) > self.max_rows:
                del self._kept[next(iter(self._kept))]
        return np.array(found, dtype=np.float64)
