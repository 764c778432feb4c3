"""Which trials are given up."""

from hypothesis import given
from hypothesis import strategies as st

from penstock.training.search.ledger import Measured, Trial
from penstock.training.search.stopping import should_stop

FOLDS = (3, 2, 1, 0)


def trial(number, *values):
    folds = {
        fold: Measured(
            trial=number, fold=fold, metrics={"ap": value}, fit_s=1.0, cpu_s=1.0, at_s=0.0
        )
        for fold, value in zip(FOLDS, values, strict=False)
    }
    return Trial(number, "boosted", {}, folds)


def decide(rule, one, others, *, higher_is_better=True):
    return should_stop(
        rule,
        one,
        [*others, one],
        folds=FOLDS,
        metric="ap",
        higher_is_better=higher_is_better,
    )


class TestAsha:
    def test_the_better_half_of_a_rung_goes_on(self):
        others = [trial(0, 0.2), trial(1, 0.4), trial(2, 0.6)]
        assert decide("asha", trial(3, 0.5), others) is None
        assert "among the best 2" in decide("asha", trial(3, 0.3), others)

    def test_lower_is_better_where_the_metric_says_so(self):
        others = [trial(0, 0.2), trial(1, 0.4), trial(2, 0.6)]
        assert decide("asha", trial(3, 0.3), others, higher_is_better=False) is None
        assert decide("asha", trial(3, 0.5), others, higher_is_better=False)

    def test_between_rungs_and_at_the_end_nobody_stops(self):
        others = [trial(n, 0.9, 0.9, 0.9, 0.9) for n in range(5)]
        assert decide("asha", trial(5, 0.1, 0.1, 0.1), others) is None
        assert decide("asha", trial(5, 0.1, 0.1, 0.1, 0.1), others) is None
        assert decide("asha", trial(5, 0.1, 0.1), others)

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
    def test_the_best_so_far_always_goes_on(self, values):
        others = [trial(n, value) for n, value in enumerate(values)]
        assert decide("asha", trial(len(values), max(values)), others) is None


class TestMedian:
    def test_a_few_trials_make_no_median(self):
        assert decide("median", trial(9, 0.0), [trial(n, 0.9) for n in range(3)]) is None

    def test_who_is_below_the_median_of_those_that_came_as_far_is_given_up(self):
        others = [trial(n, value, 0.5) for n, value in enumerate((0.2, 0.4, 0.6, 0.8))]
        assert decide("median", trial(9, 0.3), others)
        assert decide("median", trial(9, 0.7), others) is None


def test_none_gives_nobody_up():
    assert decide("none", trial(9, 0.0), [trial(n, 0.9) for n in range(9)]) is None
