"""Population based training: who goes on from whom is a pure function of what was measured."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import UserError
from penstock.training.declarations import (
    Choice,
    Floats,
    Ints,
    LogisticRegression,
    Search,
    Stage,
    TorchMLP,
)
from penstock.training.search.ledger import Measured, Trial
from penstock.training.search.population import (
    PARENT,
    WHY,
    Population,
    declared_of,
    population_of,
    propose_member,
    trail_of,
)

SEARCH = Search(
    learning_rate=Floats(1e-4, 1e-1, log=True),
    weight_decay=Choice([0.0, 0.1]),
)
DECLARED = {"learning_rate": 1e-3, "weight_decay": 0.0}
PLAN = Population(size=8, num_generations=3, num_epochs=10, seed=0)
NET = TorchMLP(num_epochs=10, schedule="cosine")


def propose(trials, plan=PLAN):
    return propose_member(
        plan, "net", SEARCH, DECLARED, trials, metric="score", higher_is_better=True
    )


def measured(number, params, score, state="complete"):
    fold = Measured(trial=number, fold=0, metrics={"score": score}, fit_s=1.0, cpu_s=1.0, at_s=1.0)
    return Trial(number, "net", params, {0: fold}, state)


def generations(scores, plan=PLAN):
    """All trials of a search in which trial n reaches scores[n]."""
    trials = []
    for number in range(plan.num_trials):
        _, values = propose(trials, plan)
        trials.append(measured(number, values, scores[number % len(scores)]))
    return trials


class TestPropose:
    def test_the_first_is_as_declared_and_the_others_lie_in_the_space(self):
        first = generations([0.5])[: PLAN.size]
        assert first[0].params == {**DECLARED, PARENT: None, WHY: "as declared"}
        rates = [trial.params["learning_rate"] for trial in first]
        assert len(set(rates)) == PLAN.size
        assert all(1e-4 <= rate <= 1e-1 for rate in rates)

    def test_nobody_begins_a_generation_before_the_last_one_is_over(self):
        trials = generations([0.5])[: PLAN.size]
        trials[3] = replace(trials[3], state="running")
        assert propose(trials) is None

    @given(st.lists(st.floats(0, 1), min_size=8, max_size=8, unique=True), st.integers(0, 9))
    def test_the_worst_quarter_goes_on_from_the_best_and_the_rest_from_itself(self, scores, seed):
        plan = PLAN.model_copy(update={"seed": seed})
        trials = generations(scores, plan)
        for generation in range(1, plan.num_generations):
            before = trials[(generation - 1) * 8 : generation * 8]
            order = sorted(range(8), key=lambda member: -scores[member])
            best, worst = {before[m].number for m in order[:2]}, set(order[-2:])
            for member in range(8):
                trial = trials[generation * 8 + member]
                assert 1e-4 <= trial.params["learning_rate"] <= 1e-1
                if member in worst:
                    assert trial.params[PARENT] in best
                else:
                    assert trial.params[PARENT] == before[member].number
                    assert trial.params["learning_rate"] == before[member].params["learning_rate"]

    def test_a_copy_changes_its_parents_values_a_little(self):
        trials = generations([0.1, *[0.5] * 6, 0.9])
        copy, parent = trials[PLAN.size], trials[PLAN.size - 1]
        assert copy.params[PARENT] == parent.number
        factor = copy.params["learning_rate"] / parent.params["learning_rate"]
        within = 1e-4 < copy.params["learning_rate"] < 1e-1
        assert not within or factor == pytest.approx(0.8) or factor == pytest.approx(1.2)
        assert "trial 7 leads" in copy.params[WHY]

    def test_who_failed_goes_on_as_a_copy(self):
        trials = generations([0.5])[: PLAN.size]
        trials[2] = replace(trials[2], state="failed", folds={})
        for number in range(PLAN.size, PLAN.size + 3):
            _, values = propose(trials)
            trials.append(measured(number, values, 0.5))
        assert trials[-1].params[PARENT] != 2

    def test_where_all_failed_nobody_follows(self):
        first = generations([0.5])[: PLAN.size]
        assert propose([replace(trial, state="failed", folds={}) for trial in first]) is None

    def test_the_same_record_gives_the_same_proposal(self):
        trials = generations([0.3, 0.9, 0.1, 0.5])[:20]
        assert propose(trials) == propose(trials)


class TestDeclaration:
    def test_a_member_is_declared_by_its_line(self):
        values = [
            {"learning_rate": 0.1, "weight_decay": 0.0, PARENT: None, WHY: ""},
            {"learning_rate": 0.1, "weight_decay": 0.0, PARENT: 0, WHY: ""},
            {"learning_rate": 0.08, "weight_decay": 0.0, PARENT: 1, WHY: ""},
        ]
        trials = [measured(number, each, 0.5) for number, each in enumerate(values)]
        found = declared_of(trials[2], trials, PLAN, NET)
        assert (found.num_epochs, found.schedule, found.learning_rate) == (10, "constant", 0.1)
        assert found.stages == (Stage(from_epoch=6, learning_rate=0.08),)
        assert declared_of(trials[0], trials, PLAN, NET).num_epochs == 3

    def test_generations_share_the_epochs_evenly(self):
        assert [PLAN.epochs_by(generation) for generation in range(3)] == [3, 6, 10]

    def test_checkpoints_lie_by_trial_and_fold(self):
        child = measured(9, {PARENT: 1, WHY: ""}, 0.5)
        own, parent = trail_of(child, 2, Path("/kept"))
        assert (own, parent) == (Path("/kept/trial-9/fold-2"), Path("/kept/trial-1/fold-2"))


class TestRefusals:
    @pytest.mark.parametrize(
        ("config", "search", "plan", "words"),
        [
            (LogisticRegression(), SEARCH, (8, 3), "a population trains nets"),
            (NET, SEARCH, (1, 3), "nobody to learn from"),
            (NET, SEARCH, (8, 11), "10 epochs do not make 11 generations"),
            (NET, Search(batch_size=Ints(64, 256)), (8, 3), "batch_size cannot change"),
            (NET, Search(max_gradient_norm=Choice([None, 1.0])), (8, 3), "may be none"),
        ],
    )
    def test_what_cannot_be_trained_so_is_told(self, config, search, plan, words):
        size, num_generations = plan
        with pytest.raises(UserError, match=words):
            population_of(config, search, size=size, num_generations=num_generations, seed=0)
