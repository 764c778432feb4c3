"""What is tried next."""

import pytest

from penstock.training.declarations import (
    Choice,
    Floats,
    Ints,
    Search,
)
from penstock.training.search.ledger import Measured, Trial
from penstock.training.search.proposals import Space, propose

BOOSTED = Search(max_depth=Ints(2, 10), learning_rate=Floats(0.01, 0.5, log=True))
LINEAR = Search(inverse_regularization=Floats(0.001, 100.0, log=True))


def space(**searches):
    declared = {
        "boosted": {"max_depth": 6, "learning_rate": 0.3},
        "linear": {"inverse_regularization": 1.0},
        "net": {"hidden_sizes": (8,)},
    }
    return Space(searches=searches, declared=declared, seed=3, metric="ap", higher_is_better=True)


def searched(asked, count, value_of):
    trials = []
    for number in range(count):
        estimator, params = propose(asked, trials)
        measured = Measured(
            trial=number,
            fold=0,
            metrics={"ap": value_of(params)},
            fit_s=1.0,
            cpu_s=1.0,
            at_s=0.0,
        )
        trials.append(Trial(number, estimator, params, {0: measured}, "complete"))
    return trials


class TestPropose:
    def test_the_first_trial_is_what_is_declared(self):
        assert propose(space(boosted=BOOSTED), []) == (
            "boosted",
            {"max_depth": 6, "learning_rate": 0.3},
        )

    def test_what_is_declared_outside_of_the_space_is_moved_into_it(self):
        outside = Search(max_depth=Ints(7, 9), learning_rate=Floats(0.01, 0.1))
        assert propose(space(boosted=outside), [])[1] == {"max_depth": 7, "learning_rate": 0.1}
        sizes = Search(hidden_sizes=Choice([(16,), (32,)]))
        assert propose(space(net=sizes), [])[1] == {"hidden_sizes": (16,)}

    def test_a_proposal_follows_from_what_is_recorded_and_nothing_else(self):
        asked = space(boosted=BOOSTED)
        trials = searched(asked, 12, lambda params: params["learning_rate"])
        assert propose(asked, trials) == propose(asked, trials)
        assert propose(asked, trials) != propose(asked, trials[:-1])

    def test_trials_gather_where_the_metric_is_better(self):
        trials = searched(space(boosted=BOOSTED), 40, lambda params: -abs(params["max_depth"] - 4))
        depths = [trial.params["max_depth"] for trial in trials[20:]]
        assert depths.count(4) > len(depths) / 3

    def test_running_failed_and_stopped_trials_are_taken_into_account(self):
        asked = space(boosted=BOOSTED)
        trials = searched(asked, 10, lambda params: params["learning_rate"])
        for trial, state in zip(trials, ("running", "failed", "stopped"), strict=False):
            trial.state = state
        trials[1].folds.clear()
        estimator, params = propose(asked, trials)
        assert estimator == "boosted"
        assert 2 <= params["max_depth"] <= 10

    def test_every_family_begins_as_declared_and_then_the_better_is_searched_more(self):
        asked = space(boosted=BOOSTED, linear=LINEAR)
        trials = searched(asked, 40, lambda params: 0.9 if "max_depth" in params else 0.1)
        assert [trial.estimator for trial in trials[:2]] == ["boosted", "linear"]
        later = [trial.estimator for trial in trials[20:]]
        assert later.count("boosted") > later.count("linear")

    @pytest.mark.parametrize("as_recorded", [tuple, list])
    def test_options_may_be_tuples_also_when_read_back_as_lists(self, as_recorded):
        asked = space(net=Search(hidden_sizes=Choice([(8,), (16, 16)])))
        trials = searched(asked, 10, lambda params: len(params["hidden_sizes"]))
        for trial in trials:
            trial.params = {"hidden_sizes": as_recorded(trial.params["hidden_sizes"])}
        assert propose(asked, trials)[1]["hidden_sizes"] in ((8,), (16, 16))
