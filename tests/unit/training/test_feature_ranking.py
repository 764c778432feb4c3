"""The rule by which features are kept."""

import numpy as np
import pytest

from penstock.training.feature_ranking import (
    find_twins,
    folds_needed,
    interval,
    needed_twins,
    rank,
    redundant_pairs,
)
from penstock.training.importance import FoldAddition, FoldImportance


def fold(*importance, noise=0.1):
    return FoldImportance(importance=list(importance), noise=noise)


def addition(*gains, noise=0.1):
    return FoldAddition(gains=list(gains), noise=noise)


def ranked(folds, *, names="abc", top=None, twins=None, additions=(), stays=()):
    twins = twins or {}
    standing = [place for place in range(len(names)) if place not in twins or place in stays]
    information = [[float(n) for n in range(len(names))]] * len(folds)
    return rank(list(names), information, standing, folds, twins, additions, top)


class TestRank:
    def test_the_most_important_comes_first_with_its_span_over_folds(self):
        found = ranked([fold(0.2, 0.9, 0.0), fold(0.4, 0.7, 0.0)])
        assert [feature.name for feature in found] == ["b", "a", "c"]
        assert found[0].importance.model_dump() == pytest.approx(
            {"mean": 0.8, "low": 0.7, "high": 0.9}
        )

    def test_what_beats_noise_in_four_of_five_folds_is_kept(self):
        high, low = fold(0.5, 0.5, 0.5), fold(0.5, 0.0, 0.0)
        found = {f.name: f for f in ranked([high, high, high, fold(0.5, 0.5, 0.0), low])}
        assert [found[name].is_kept for name in "abc"] == [True, True, False]
        assert found["c"].num_folds_above_noise == 3

    def test_a_large_mean_from_one_lucky_fold_is_not_enough(self):
        found = ranked([fold(50.0, 0.2, 0.0), fold(0.0, 0.2, 0.0), fold(0.0, 0.2, 0.0)])
        assert [(f.name, f.is_kept) for f in found] == [("a", False), ("b", True), ("c", False)]

    def test_top_keeps_the_first_of_those_that_the_rule_keeps(self):
        found = ranked([fold(0.5, 0.9, 0.7)] * 2, top=2)
        assert [f.name for f in found if f.is_kept] == ["b", "c"]

    def test_redundant_ones_come_last_and_name_who_stands_for_them(self):
        found = ranked([fold(0.5, 0.9)] * 2, twins={2: 0}, additions=[addition(0.0)] * 2)
        assert (found[-1].name, found[-1].redundant_with) == ("c", "a")
        assert found[-1].importance is None
        assert not found[-1].is_kept

    def test_a_twin_that_stays_is_ranked_as_any_other_and_tells_what_it_adds(self):
        folds, additions = [fold(0.2, 0.9, 0.5)] * 2, [addition(0.3), addition(0.5)]
        found = ranked(folds, twins={2: 0}, additions=additions, stays=(2,))
        assert [f.name for f in found if f.is_kept] == ["b", "c", "a"]
        assert found[1].gain.mean == pytest.approx(0.4)
        assert found[1].redundant_with is None


class TestTwins:
    def test_the_one_with_more_information_stands(self):
        alike = np.array([[1.0, 0.97, 0.0], [0.97, 1.0, 0.0], [0.0, 0.0, 1.0]])
        assert find_twins(alike, np.array([0.1, 0.2, 0.0])) == {0: 1}
        assert find_twins(alike, np.array([0.2, 0.1, 0.0])) == {1: 0}

    def test_of_equals_the_first_of_the_service_stands(self):
        assert find_twins(np.ones((3, 3)), np.zeros(3)) == {1: 0, 2: 0}

    def test_opposites_are_twins_too(self):
        assert find_twins(np.array([[1.0, -0.99], [-0.99, 1.0]]), np.zeros(2)) == {1: 0}

    def test_a_chain_loses_its_middle_only_if_an_end_does_not_stand_for_the_other(self):
        # a and b are alike, b and c are alike, a and c are not.
        chain = np.array([[1.0, 0.96, 0.9], [0.96, 1.0, 0.96], [0.9, 0.96, 1.0]])
        assert find_twins(chain, np.array([0.3, 0.2, 0.1])) == {1: 0}
        assert find_twins(chain, np.array([0.2, 0.3, 0.1])) == {0: 1, 2: 1}


def test_a_twin_is_needed_where_it_adds_more_than_noise_in_enough_folds():
    folds = [addition(0.2, 0.2, 0.9), addition(0.2, 0.2, 0.0), addition(0.2, 0.1, 0.0)]
    assert needed_twins([7, 4, 5], folds) == [7]


def test_pairs_are_named_once_the_most_alike_first():
    alike = np.array([[1.0, 0.96, 0.5], [0.96, 1.0, -0.99], [0.5, -0.99, 1.0]])
    found = redundant_pairs(alike, ["a", "b", "c"])
    assert [(p.first, p.second, p.rank_correlation) for p in found] == [
        ("b", "c", -0.99),
        ("a", "b", 0.96),
    ]


@pytest.mark.parametrize(("folds", "needed"), [(2, 2), (3, 3), (4, 4), (5, 4), (10, 8)])
def test_four_folds_of_five(folds, needed):
    assert folds_needed(folds) == needed


def test_an_interval_spans_the_folds():
    assert interval([3.0, 1.0, 2.0]).model_dump() == {"mean": 2.0, "low": 1.0, "high": 3.0}
