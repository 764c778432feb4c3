"""What cannot be trained on: refused with what to do, and no run is left as if it were running."""

from datetime import timedelta

import mlflow
import pytest

from cases import some_slow
from payments import FIRST_DAY, SERVICE, build_features
from payments import settings_in as settings_in_storage
from penstock.errors import NotFoundError, TrainingDataError, UserError
from penstock.training.declarations import (
    DecisionTree,
    GatePolicy,
    Model,
    RollingTimeSplit,
    TimeSplit,
)
from penstock.training.trainer import train

DAY = timedelta(days=1)
SPLIT = {
    "train_start": FIRST_DAY + 10 * DAY,
    "train_end": FIRST_DAY + 30 * DAY,
    "label_delay": 7 * DAY,
    "test_start": FIRST_DAY + 37 * DAY,
    "test_end": FIRST_DAY + 60 * DAY,
}
MODEL = Model(
    name="card_fraud",
    label_table="card_fraud.transactions",
    label="TX_FRAUD",
    feature_service=SERVICE,
    split=TimeSplit(**SPLIT),
    estimators={"tree": DecisionTree(max_depth=2)},
    default_estimator="tree",
    primary_metric="roc_auc",
    gate=GatePolicy(metric="roc_auc"),
)
LATER = {name: SPLIT[name] + 365 * DAY for name in SPLIT if name != "label_delay"}
CASES = {
    "a label that no column has": ({"label": "TX_FRUAD"}, NotFoundError, "TX_FRAUD"),
    "a label that is constant": (
        {"label": "TX_FRAUD_SCENARIO"},
        TrainingDataError,
        "every label 'TX_FRAUD_SCENARIO' of the training split is 0",
    ),
    "a label of many values": ({"label": "TX_TIME_DAYS"}, TrainingDataError, "takes the values"),
    "a training side of one class": (
        {"split": TimeSplit(**SPLIT | {"train_end": SPLIT["train_start"] + timedelta(hours=12)})},
        TrainingDataError,
        "every label 'TX_FRAUD' of the training split",
    ),
    "no rows at all": ({"split": TimeSplit(**SPLIT | LATER)}, TrainingDataError, "no row"),
    "no row whose label was known": (
        {
            "split": RollingTimeSplit(
                train_start=FIRST_DAY - 20 * DAY,
                test_start=FIRST_DAY + DAY,
                test_end=FIRST_DAY + 60 * DAY,
                label_delay=7 * DAY,
            )
        },
        TrainingDataError,
        "the training split has no rows",
    ),
    "a service that is not declared": (
        {"feature_service": "card_fraud_v2"},
        NotFoundError,
        "card_fraud_v1",
    ),
}


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    return build_features(settings_in_storage(tmp_path_factory.mktemp("bad_input")))


def runs_of(settings):
    client = mlflow.MlflowClient(tracking_uri=settings.tracking_uri)
    experiment = client.get_experiment_by_name("card_fraud")
    return client.search_runs([experiment.experiment_id]) if experiment else []


@pytest.mark.parametrize(
    "case",
    some_slow(CASES, in_every_run={"a label that no column has", "no row whose label was known"}),
)
def test_it_ends_with_what_to_do_and_the_run_as_failed(settings, case):
    changed, kind, words = CASES[case]
    before = len(runs_of(settings))
    with pytest.raises(kind, match=words) as refused:
        train(settings, MODEL.model_copy(update=changed), estimator=None, request_id=case)
    assert refused.value.exit_code == 2
    assert isinstance(refused.value, UserError)
    assert refused.value.allowed or refused.value.next_step
    runs = runs_of(settings)
    assert len(runs) == before + 1
    assert {run.info.status for run in runs} == {"FAILED"}
    assert words.split("'")[0] in runs[0].data.tags["penstock.failure"]


def test_an_estimator_that_is_not_declared_begins_no_run(settings):
    before = len(runs_of(settings))
    with pytest.raises(NotFoundError, match="did you mean 'tree'"):
        train(settings, MODEL, estimator="tre", request_id="unknown")
    assert len(runs_of(settings)) == before
