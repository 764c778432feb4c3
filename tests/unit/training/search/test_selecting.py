"""Which members an ensemble is made of."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import average_precision_score

from penstock.training.search.selecting import choose_members

RNG = np.random.default_rng(0)
LABELS = [(RNG.random(100) < 0.2).astype(np.int8) for _ in range(2)]


def noisy(seed, *, noise):
    rng = np.random.default_rng(seed)
    return [(y + rng.normal(scale=noise, size=len(y))).astype(np.float32) for y in LABELS]


def measure(fold, scores):
    return float(average_precision_score(LABELS[fold], scores))


def alone(scores):
    return float(np.mean([measure(fold, each) for fold, each in enumerate(scores)]))


class TestChooseMembers:
    def test_different_guesses_together_are_better_than_the_best_of_them(self):
        candidates = {number: noisy(number, noise=1.0) for number in range(6)}
        taken, reached = choose_members(candidates, measure)
        assert len(taken) > 1
        assert reached > max(alone(scores) for scores in candidates.values())

    def test_what_only_harms_is_left_out(self):
        candidates = {0: noisy(0, noise=0.1), 1: noisy(1, noise=50.0)}
        taken, _ = choose_members(candidates, measure)
        assert set(taken) == {0}

    def test_the_reached_value_is_that_of_the_weighted_mean(self):
        candidates = {number: noisy(number, noise=1.0) for number in range(4)}
        taken, reached = choose_members(candidates, measure)
        total = sum(taken.values())
        mean = [
            sum(candidates[name][fold] * (count / total) for name, count in taken.items())
            for fold in range(2)
        ]
        assert np.isclose(alone(mean), reached)

    @settings(max_examples=15, deadline=None)
    @given(st.lists(st.floats(0.05, 5.0), min_size=1, max_size=5))
    def test_it_is_never_worse_than_the_best_alone(self, noises):
        candidates = {n: noisy(n, noise=noise) for n, noise in enumerate(noises)}
        _, reached = choose_members(candidates, measure, max_rounds=3)
        assert reached >= max(alone(scores) for scores in candidates.values()) - 1e-9
