"""A whole search on made-up payments in which the amount decides, in this process."""

from datetime import datetime
from typing import ClassVar

import mlflow
import pytest

from payments import commit_payments, payments_before_the_test, settings_in
from penstock.errors import UserError
from penstock.features.build import build
from penstock.features.store import apply
from penstock.training.declarations import (
    Floats,
    LogisticRegression,
    Search,
    TorchMLP,
    load_model,
)
from penstock.training.search import tuning
from penstock.training.search.asked import Asked, declared_search, families_of
from penstock.training.search.budget import Budget
from penstock.training.search.population import population_of
from penstock.training.search.tuning import tune, tuning_folder
from penstock.training.search.winner import tuned_model
from penstock.training.tracking import Tracking

LINEAR = {"logistic_regression": Search(inverse_regularization=Floats(1e-4, 10.0, log=True))}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    settings = settings_in(tmp_path_factory.mktemp("tuning"))
    commit_payments(settings, payments_before_the_test())
    build(settings, "card_fraud")
    apply(settings)
    return settings


@pytest.fixture(scope="module")
def model(settings):
    return load_model(settings, "card_fraud")


def asked(**more):
    return Asked(
        **{
            "searches": LINEAR,
            "estimators": {"logistic_regression": LogisticRegression()},
            "budget": Budget(num_trials=3),
            "num_folds": 2,
            **more,
        }
    )


@pytest.fixture(scope="module")
def found(settings, model):
    return tune(settings, model, asked(), request_id="first")


class TestTune:
    def test_the_folds_end_before_the_models_test_begins(self, found, model):
        ends = [datetime.fromisoformat(fold["test_end"]) for fold in found.folds]
        assert max(ends) + model.split.label_delay <= model.split.test_start_utc

    def test_the_best_stands_among_what_was_tried(self, found, model):
        values = [trial.value for trial in found.trials if trial.state == "complete"]
        assert found.winner.value == max(values)
        assert found.trials[0].params == {"inverse_regularization": 1.0}
        assert found.reason == "all 3 trials are done"
        assert found.cpu_s > 0
        tuned, name = tuned_model(model, found)
        assert name == "logistic_regression_tuned"
        config = tuned.estimator(name)
        assert isinstance(config, LogisticRegression)
        assert config.inverse_regularization == found.winner.params["inverse_regularization"]

    def test_each_trial_is_a_run_beneath_the_searchs_one(self, settings, found):
        client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        parent = client.get_run(found.run_id)
        assert parent.info.status == "FINISHED"
        assert parent.data.metrics["num_trials"] == 3
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{found.run_id}'"
        )
        assert len(children) == 3
        best = next(c for c in children if c.info.run_name == f"trial {found.best}")
        assert best.data.metrics["mean"] == pytest.approx(found.winner.value)
        points = client.get_metric_history(best.info.run_id, found.metric)
        assert [point.step for point in points] == [1, 2]

    def test_it_leaves_its_pictures_with_the_run(self, settings, found):
        client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        names = {file.path for file in client.list_artifacts(found.run_id)}
        assert {"history.png", "parallel_coordinates.png", "tuning.html"} <= names

    def test_trials_are_no_runs_of_the_model(self, settings, found, model):
        assert Tracking.open(settings).finished_runs(model.name) == []

    def test_the_same_request_again_gives_the_same_answer(self, settings, model, found):
        assert tune(settings, model, asked(), request_id="first") == found


class TestRefusals:
    def test_a_budget_too_small_is_told_and_the_run_is_marked_failed(self, settings, model):
        with pytest.raises(UserError, match="before one trial was measured on all 2 folds"):
            tune(settings, model, asked(budget=Budget(time_s=1e-9)), request_id="small")
        client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        run_id = Tracking.open(settings).find_run("card_fraud-tuning", "small")
        assert client.get_run(run_id).info.status == "FAILED"
        # With more of it the same request goes on.
        found = tune(settings, model, asked(budget=Budget(num_trials=1)), request_id="small")
        assert found.run_id == run_id
        assert client.get_run(run_id).info.status == "FINISHED"

    def test_another_search_under_the_same_request_is_refused(self, settings, model):
        with pytest.raises(UserError, match="before one trial"):
            tune(settings, model, asked(budget=Budget(time_s=1e-9)), request_id="other")
        with pytest.raises(UserError, match="another stopping"):
            tune(settings, model, asked(rule="median"), request_id="other")

    def test_an_estimator_without_a_space_is_refused_with_what_to_do(self, model):
        with pytest.raises(UserError, match=r"declares nothing to search.*--auto"):
            declared_search(model, "decision_tree")

    def test_no_folds_are_refused(self):
        with pytest.raises(UserError, match="0 folds"):
            asked(num_folds=0)


def test_the_record_lies_with_the_search(settings, found):
    names = {file.name for file in tuning_folder(settings, found.run_id).iterdir()}
    assert {"ledger.jsonl", "tuning.json"} <= names


@pytest.fixture(scope="module")
def searched(settings, model):
    searches, estimators = families_of(model)
    few = ("linear", "lightgbm")
    wanted = asked(
        searches={name: searches[name] for name in few},
        estimators={name: estimators[name] for name in few},
        is_auto=True,
        budget=Budget(num_trials=3),
    )
    return tune(settings, model, wanted, request_id="auto")


class TestAuto:
    """Families that are fast to fit, as `--auto` searches all of them."""

    def test_the_ensemble_is_no_worse_than_any_family_on_the_rows_that_chose_it(self, searched):
        values = {each.name: each.metrics[searched.metric] for each in searched.leaderboard}
        assert values["ensemble"] >= max(values.values()) - 1e-9
        assert {"ensemble", "linear", "lightgbm"} == set(values)

    def test_each_line_has_an_interval_a_fit_time_and_a_latency(self, searched):
        for each in searched.leaderboard:
            assert each.low <= each.metrics[searched.metric] <= each.high
            assert each.fit_s > 0
            assert 0 < each.latency_us < 1e6

    def test_it_becomes_one_estimator_of_the_model(self, searched, model):
        tuned, name = tuned_model(model, searched)
        assert name == "auto"
        assert tuned.estimator(name) == searched.ensemble
        assert sum(searched.ensemble.shares) == pytest.approx(1.0)

    def test_every_family_that_suits_the_label_is_searched(self, model):
        searches, estimators = families_of(model)
        assert list(searches) == ["linear", "forest", "xgboost", "lightgbm", "mlp"]
        assert {estimator.task for estimator in estimators.values()} == {"binary"}


class TestPopulation:
    SEARCH: ClassVar = {"net": Search(learning_rate=Floats(1e-4, 1e-1, log=True))}
    NET = TorchMLP(hidden_sizes=(4,), num_epochs=4, batch_size=64)

    def asked(self):
        plan = population_of(self.NET, self.SEARCH["net"], size=4, num_generations=2, seed=0)
        return asked(
            searches=self.SEARCH,
            estimators={"net": self.NET},
            population=plan,
            budget=Budget(num_trials=plan.num_trials),
            rule="none",
        )

    @pytest.fixture
    def with_net(self, model):
        return model.model_copy(update={"estimators": {**model.estimators, "net": self.NET}})

    def test_it_ends_with_a_net_and_the_stages_of_its_line(self, settings, with_net):
        found = tune(settings, with_net, self.asked(), request_id="population")
        assert len(found.trials) == 8
        parents = [trial.params["parent"] for trial in found.trials[4:]]
        assert len(set(parents)) < 4
        tuned, name = tuned_model(with_net, found)
        net = tuned.estimator(name)
        assert net == found.tuned
        assert net.schedule == "constant"
        assert net.num_epochs == (2 if found.best < 4 else 4)
        assert not (settings.storage_path / "checkpoints" / found.run_id).exists()

    def test_without_its_parents_checkpoints_a_member_is_the_same_net(
        self, settings, with_net, monkeypatch
    ):
        found = tune(settings, with_net, self.asked(), request_id="population")
        monkeypatch.setattr(tuning, "trail_of", lambda *_: None)
        alone = tune(settings, with_net, self.asked(), request_id="without checkpoints")
        assert [trial.value for trial in alone.trials] == [trial.value for trial in found.trials]
