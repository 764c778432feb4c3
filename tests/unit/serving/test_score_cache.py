import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from penstock.serving.score_cache import ScoreCache

VALUES = st.sampled_from([0.0, -0.0, 1.5, np.nan, np.inf])
BATCHES = st.lists(
    of_numpy.arrays(np.float64, st.tuples(st.integers(0, 5), st.just(2)), elements=VALUES),
    max_size=6,
)


def model(features: np.ndarray) -> np.ndarray:
    """Tells 0 from -0, and gives NaN for NaN."""
    return np.copysign(1.0, features[:, 0]) + 3 * features[:, 1]


@given(BATCHES, st.integers(1, 4))
def test_any_batches_are_scored_as_without_it(batches: list[np.ndarray], max_rows: int):
    cache = ScoreCache(model, max_rows)
    with np.errstate(invalid="ignore"):
        for features in batches:
            np.testing.assert_array_equal(cache(features), model(features))
    assert len(cache._kept) <= max_rows
    assert cache.counts.num_hits + cache.counts.num_misses == sum(map(len, batches))


def test_a_row_that_is_known_is_not_run_again():
    ran = []

    def counted(features: np.ndarray) -> np.ndarray:
        ran.extend(features[:, 0].tolist())
        return model(features)

    cache = ScoreCache(counted, max_rows=2)
    for column in ([1.0, 2.0], [2.0, 1.0, 2.0], [3.0], [1.0]):
        cache(np.column_stack([column, column]))
    assert ran == [1.0, 2.0, 3.0, 1.0], "the first one went when there was a third"
    assert (cache.counts.num_hits, cache.counts.num_misses) == (3, 4)
