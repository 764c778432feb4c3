"""A search from its first trial to its end, in this process."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from penstock.errors import PenstockError, TrainingDataError, UserError
from penstock.training.declarations import (
    AveragePrecision,
    Floats,
    Ints,
    LogisticRegression,
    Search,
    XGBoost,
)
from penstock.training.estimators.base import FitJob
from penstock.training.preprocessing import Preprocessing
from penstock.training.search.budget import Budget
from penstock.training.search.controller import Controller, Plan, Watch, best
from penstock.training.search.ledger import Ledger
from penstock.training.search.measuring import Measurement, PreparedFold, measure
from penstock.training.search.proposals import Space
from penstock.training.search.tasks import Here
from penstock.training.search_declarations import with_values
from penstock.training.validation import Examples

METRIC = "average_precision"
FOLDS = (2, 1, 0)
LINEAR = Search(inverse_regularization=Floats(1e-4, 10.0, log=True))


def told(place, config):
    """A measurement without a fit: the metric has its top at a strength of 0.1."""
    value = 0.5 - abs(np.log10(config.inverse_regularization) + 1) / 10 + place / 100
    return Measurement(
        metrics={METRIC: float(value)}, scores=np.zeros(1, np.float32), fit_s=0.1, wall_s=0.1
    )


def fold(seed):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(300, 5)).astype(np.float32)
    labels = (rng.random(300) < 1 / (1 + np.exp(2 - 2 * rows[:, 0]))).astype(np.int8)
    return PreparedFold(
        train=rows[:200],
        train_labels=labels[:200],
        scaling=Preprocessing(means=np.zeros(5), scales=np.ones(5)),
        job=FitJob(name="trial", checkpoints=Path()),
        test=rows[200:],
        test_rows=Examples(features=np.empty((100, 0)), labels=labels[200:], frame=pl.DataFrame()),
    )


def plan(*, trials=10, rule="none", **more):
    space = Space(
        searches={"linear": LINEAR},
        declared={"linear": {"inverse_regularization": 1.0}},
        seed=0,
        metric=METRIC,
        higher_is_better=True,
    )
    return Plan(
        **{
            "space": space,
            "folds": FOLDS,
            "budget": Budget(num_trials=trials),
            "rule": rule,
            "money_per_cpu_s": 0.0,
            "num_cpus": {"linear": 1},
            **more,
        }
    )


class Searching:
    """A search of a file, which counts its fits."""

    def __init__(self, file, asked, *, kill_after=None, fit=told, declared=None):
        declared = declared or LogisticRegression()
        self.fits = []
        self.ledger = Ledger(file, {"seed": asked.space.seed})
        tasks = Here()

        def counted(number, place, config):
            if kill_after is not None and len(self.fits) >= kill_after:
                raise KeyboardInterrupt
            self.fits.append((number, place))
            return fit(place, config)

        def start(trial, place):
            config = with_values(declared, trial.params, of="a trial")
            key = trial.number, place
            tasks.start(key, counted, *key, config, num_cpus=1)

        self.seen = []
        self.ended = []
        watch = Watch(
            changed=lambda trials: self.seen.append(len(trials)),
            ended=lambda trial: self.ended.append(trial.number),
        )
        self.controller = Controller(asked, self.ledger, tasks, start, watch)

    def run(self):
        return self.controller.run()

    @property
    def outcome(self):
        return [(t.params, t.state, t.value(METRIC)) for t in self.ledger.trials]


class TestController:
    def test_every_trial_is_measured_once_on_every_fold(self, tmp_path):
        search = Searching(tmp_path / "a", plan())
        assert search.run() == "all 10 trials are done"
        assert sorted(search.fits) == [(n, f) for n in range(10) for f in sorted(FOLDS)]
        assert search.ended == list(range(10))

    def test_the_best_is_never_worse_than_what_is_declared(self, tmp_path):
        search = Searching(tmp_path / "a", plan())
        search.run()
        found = best(search.ledger.trials, metric=METRIC, higher_is_better=True)
        assert search.ledger.trials[0].params == {"inverse_regularization": 1.0}
        assert found[0].value(METRIC) >= search.ledger.trials[0].value(METRIC)

    def test_halving_saves_fits(self, tmp_path):
        search = Searching(tmp_path / "a", plan(trials=12, rule="asha"))
        search.run()
        states = [trial.state for trial in search.ledger.trials]
        assert len(search.fits) < 12 * len(FOLDS)
        assert states[0] == "complete"
        assert states.count("stopped") >= 3

    @pytest.mark.parametrize("rule", ["none", "asha"])
    def test_killed_anywhere_it_ends_as_if_it_had_not_been_and_repeats_nothing(
        self, tmp_path, rule
    ):
        whole = Searching(tmp_path / "whole", plan(trials=6, rule=rule))
        whole.run()
        for kill_after in (0, 1, 4, 7):
            file = tmp_path / f"killed-{kill_after}"
            first = Searching(file, plan(trials=6, rule=rule), kill_after=kill_after)
            with pytest.raises(KeyboardInterrupt):
                first.run()
            second = Searching(file, plan(trials=6, rule=rule))
            second.run()
            assert second.outcome == whole.outcome
            assert sorted(first.fits + second.fits) == sorted(whole.fits)

    def test_a_search_that_is_over_is_not_begun_again(self, tmp_path):
        Searching(tmp_path / "a", plan(trials=3)).run()
        again = Searching(tmp_path / "a", plan(trials=9))
        assert again.run() == "all 3 trials are done"
        assert again.fits == []


class TestBudget:
    def test_money_ends_it(self, tmp_path):
        asked = plan(budget=Budget(money=5e-3), money_per_cpu_s=0.01)
        search = Searching(tmp_path / "a", asked)
        assert "money" in search.run()
        assert search.ledger.cpu_s == pytest.approx(0.5)

    def test_a_time_that_ends_before_the_first_trial_is_refused_with_what_to_do(self, tmp_path):
        search = Searching(tmp_path / "a", plan(budget=Budget(time_s=1e-6)))
        with pytest.raises(UserError, match="before one trial was measured on all 3 folds"):
            search.run()

    def test_with_more_of_it_the_same_search_goes_on(self, tmp_path):
        small = Searching(tmp_path / "a", plan(budget=Budget(money=1e-9), money_per_cpu_s=1.0))
        with pytest.raises(UserError, match="money"):
            small.run()
        large = Searching(tmp_path / "a", plan(trials=2))
        large.run()
        assert not set(small.fits) & set(large.fits)


class TestFailures:
    def test_a_trial_that_cannot_be_trained_fails_alone(self, tmp_path):
        def refuse_strong(place, config):
            if config.inverse_regularization < 1e-2:
                raise TrainingDataError("the loss was not a finite number")
            return told(place, config)

        search = Searching(tmp_path / "a", plan(trials=8), fit=refuse_strong)
        search.run()
        reasons = {trial.reason for trial in search.ledger.trials if trial.state == "failed"}
        assert reasons == {"the loss was not a finite number"}
        assert len(search.ledger.trials) == 8

    def test_where_the_first_ones_all_fail_the_search_ends_with_the_reason(self, tmp_path):
        def refuse(_place, _config):
            raise TrainingDataError("every label is 0")

        with pytest.raises(TrainingDataError, match=r"the first 3 trials failed.*every label"):
            Searching(tmp_path / "a", plan(), fit=refuse).run()

    def test_what_is_nobodys_input_ends_the_search_and_keeps_what_is_measured(self, tmp_path):
        def lose(_place, _config):
            raise MemoryError("no room")

        search = Searching(tmp_path / "a", plan(), fit=lose)
        with pytest.raises(PenstockError, match="no room"):
            search.run()
        assert search.ledger.closed is None


class TestRealFits:
    def test_trees_are_searched_on_real_rows(self, tmp_path):
        folds = [fold(seed) for seed in range(len(FOLDS))]
        space = Space(
            searches={"boosted": Search(num_rounds=Ints(1, 3))},
            declared={"boosted": {"num_rounds": 2}},
            seed=0,
            metric=METRIC,
            higher_is_better=True,
        )
        search = Searching(
            tmp_path / "a",
            plan(trials=3, space=space, num_cpus={"boosted": 1}),
            declared=XGBoost(num_rounds=2),
            fit=lambda place, config: measure(folds[place], config, [AveragePrecision()]),
        )
        search.run()
        assert {trial.state for trial in search.ledger.trials} == {"complete"}
        assert all(0 < trial.value(METRIC) <= 1 for trial in search.ledger.trials)
