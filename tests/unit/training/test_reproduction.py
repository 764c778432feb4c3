"""A run made again from its record: each family for real, and the verdict as a pure function."""

import shutil
from datetime import UTC, datetime

import mlflow
import pytest

from payments import USE_CASE, commit_payments, make_payments, payments_before_the_test, settings_in
from penstock.errors import GateRefusedError, NotFoundError, UserError
from penstock.features.build import build
from penstock.features.store import apply
from penstock.features.training_set import load_training_set
from penstock.training import reproduction
from penstock.training.environment import Hardware
from penstock.training.reproduction import judge, refuse_difference, reproduce
from penstock.training.runs import Provenance, Run
from penstock.training.tracking import REPRODUCTION_TAG, Tracking
from penstock.training.trainer import train


def run(run_id: str = "a" * 32, *, metric: float = 0.5, **provenance) -> Run:
    facts = {
        "training_set_digest": "rows",
        "feature_service_digest": "service",
        "code_digest": "code",
        "patch_digest": None,
        "patch_left_out": {},
        "hardware": Hardware(
            machine="x86_64",
            cpu_model="one",
            num_cores=2,
            memory_bytes=1,
            num_nodes=1,
            accelerators={},
        ),
        "num_threads": 1,
        "predictions_digest": "scores",
    }
    return Run(
        run_id=run_id,
        request_id="r",
        model="spills",
        use_case="dam",
        estimator="forest",
        training_set_id="5e7",
        table_versions={"dam.readings": 3},
        metrics={"roc_auc": metric},
        seed=0,
        git_commit=None,
        environment_digest="e",
        provenance=Provenance(**facts | provenance),
        started=datetime(2024, 1, 1, tzinfo=UTC),
        fit_s=1.0,
        bundle_path="b",
        num_training_rows=2,
        num_training_positives=1,
        num_test_rows=2,
        num_test_positives=1,
    )


class TestJudge:
    def test_the_same_predictions_are_a_run_reproduced(self):
        assert judge(run(), run("b" * 32)).verdict == "reproduced"

    def test_other_predictions_with_the_same_metrics_are_within_tolerance(self):
        verdict = judge(run(), run("b" * 32, metric=0.5 + 9e-10, predictions_digest="other"))
        assert verdict.verdict == "same within tolerance"
        assert [each.what for each in verdict.differences] == ["predictions"]
        refuse_difference(verdict)

    @pytest.mark.parametrize(
        ("again", "what"),
        [
            ({"metric": 0.5 + 2e-9, "predictions_digest": "other"}, "roc_auc"),
            ({"metric": float("nan")}, "roc_auc"),
            ({"training_set_digest": "other"}, "training rows"),
        ],
    )
    def test_what_differs_is_named_and_ends_with_the_gates_exit_code(self, again, what):
        verdict = judge(run(), run("b" * 32, **again))
        assert verdict.verdict == "differs"
        with pytest.raises(GateRefusedError, match=what) as refused:
            refuse_difference(verdict)
        assert refused.value.exit_code == 3

    def test_a_metric_that_is_gone_is_a_difference(self):
        again = run("b" * 32).model_copy(update={"metrics": {}})
        assert judge(run(), again).verdict == "differs"

    def test_a_gpu_is_allowed_more(self):
        gpu = run().provenance.hardware.model_copy(update={"accelerators": {"A100": 1.0}})
        verdict = judge(
            run(hardware=gpu), run("b" * 32, metric=0.5 + 1e-6, predictions_digest="other")
        )
        assert verdict.verdict == "same within tolerance"

    def test_a_run_that_is_older_than_the_record_cannot_be_judged(self):
        with pytest.raises(UserError, match="older"):
            judge(run().model_copy(update={"provenance": None}), run("b" * 32))


@pytest.fixture(scope="module")
def settings(tmp_path_factory, connected):
    """Payments that end with the declared model's test, and their features."""
    settings = settings_in(tmp_path_factory.mktemp("again"))
    commit_payments(settings, payments_before_the_test())
    build(settings, USE_CASE)
    apply(settings, [USE_CASE])
    return settings


@pytest.fixture(scope="module")
def model(card_fraud_model):
    """The declared model with small estimators, and no alarm: here the amount decides all."""
    small = {
        "xgboost": {"num_rounds": 5},
        "lightgbm": {"num_rounds": 5},
        "mlp": {"num_epochs": 2},
        "random_forest": {"num_trees": 10},
    }
    estimators = {
        name: each.model_copy(update=small.get(name, {}))
        for name, each in card_fraud_model.estimators.items()
    }
    return card_fraud_model.model_copy(update={"estimators": estimators, "leak_alarm": None})


@pytest.fixture(scope="module")
def trained(settings, model):
    return train(settings, model, estimator="decision_tree", request_id="first")


@pytest.mark.ray
class TestReproduce:
    def test_it_reads_the_recorded_versions_though_the_tables_went_on(
        self, settings, model, trained
    ):
        shutil.rmtree(load_training_set(settings, trained.training_set_id).path)
        commit_payments(settings, make_payments(50))
        build(settings, USE_CASE)
        verdict = reproduce(settings, trained.run_id, request_id="again", anyway=True)
        assert (verdict.verdict, verdict.differences) == ("reproduced", ())
        client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
        tags = client.get_run(verdict.again_run_id).data.tags
        assert tags[REPRODUCTION_TAG] == trained.run_id
        shown = Tracking.open(settings).finished_runs(model.name)
        assert verdict.again_run_id not in {each.run_id for each in shown}

    @pytest.mark.parametrize(
        "estimator",
        [
            "logistic_regression",
            pytest.param("xgboost", marks=pytest.mark.slow),
            pytest.param("random_forest", marks=pytest.mark.slow),
            pytest.param("lightgbm", marks=pytest.mark.slow),
            pytest.param("mlp", marks=pytest.mark.slow),
        ],
    )
    def test_every_family_comes_out_again(self, settings, model, estimator):
        if estimator not in model.estimators:
            pytest.skip(f"the model declares no {estimator}")
        first = train(settings, model, estimator=estimator, request_id=f"{estimator}-1")
        verdict = reproduce(settings, first.run_id, request_id=f"{estimator}-2", anyway=True)
        assert verdict.verdict == "reproduced"
        for recorded, again in verdict.metrics.values():
            assert abs(recorded - again) <= 1e-9

    def test_other_code_or_packages_are_refused_with_the_way_back(
        self, settings, trained, monkeypatch
    ):
        installed = reproduction.environment.packages() | {"polars": "0.1"}
        monkeypatch.setattr(reproduction, "code_digest", lambda *_: "f" * 64)
        monkeypatch.setattr(reproduction.environment, "packages", lambda: installed)
        with pytest.raises(
            GateRefusedError, match=r"git checkout .*install polars [1-9].*--anyway"
        ):
            reproduce(settings, trained.run_id, request_id="other")

    def test_a_run_that_is_not_there_is_refused(self, settings):
        with pytest.raises(NotFoundError, match="no finished run"):
            reproduce(settings, "0" * 32, request_id="none")
