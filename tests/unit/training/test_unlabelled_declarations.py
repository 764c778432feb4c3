"""Models without labels take the same journey: trained, measured, registered, answering."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from payments import FIRST_DAY, SERVICE, build_features, settings_in
from penstock.errors import DeclarationError
from penstock.registry.package import verify
from penstock.registry.registration import real_rows, register
from penstock.scorer import load_scorer
from penstock.training.code_state import CodeState
from penstock.training.declarations import (
    AveragePrecision,
    FlaggedShare,
    GatePolicy,
    IsolationForest,
    KMeans,
    LogisticRegression,
    MeanScore,
    Model,
    PrequentialFolds,
    RandomFolds,
    RocAuc,
    TimeSplit,
)
from penstock.training.fold_run import measure_on_folds
from penstock.training.reproduction import reproduce
from penstock.training.tracking import Tracking
from penstock.training.trainer import train

DAY = timedelta(days=1)
SPLIT = TimeSplit(
    train_start=FIRST_DAY + 10 * DAY,
    train_end=FIRST_DAY + 40 * DAY,
    test_start=FIRST_DAY + 40 * DAY,
    test_end=FIRST_DAY + 60 * DAY,
)
GIVEN = {
    "name": "card_fraud",
    "label_table": "card_fraud.transactions",
    "feature_service": SERVICE,
    "split": SPLIT,
    "estimators": {
        "isolation_forest": IsolationForest(num_trees=20),
        "k_means": KMeans(num_clusters=3, num_starts=1, silhouette_rows=100),
    },
    "default_estimator": "isolation_forest",
    "metrics": (MeanScore(), FlaggedShare(threshold=0.6)),
    "primary_metric": "mean_score",
    "gate": GatePolicy(metric="mean_score"),
}


class TestDeclaration:
    def test_no_label_is_needed(self):
        model = Model(**GIVEN)
        assert (model.task, model.label) == ("unsupervised", None)

    def test_a_label_is_for_metrics_that_check_what_was_found(self):
        metrics = (MeanScore(), RocAuc(), AveragePrecision())
        assert Model(**GIVEN | {"metrics": metrics, "label": "TX_FRAUD"}).label == "TX_FRAUD"
        with pytest.raises(ValidationError, match="of different kinds"):
            Model(**GIVEN | {"metrics": metrics})

    def test_what_learns_from_labels_is_refused(self):
        for label in (None, "TX_FRAUD"):
            with pytest.raises(DeclarationError, match="trained without labels"):
                _ = Model(**GIVEN | {"label": label}).known_label

    def test_estimators_of_classes_need_one(self):
        changed = {
            "estimators": {"linear": LogisticRegression()},
            "default_estimator": "linear",
            "metrics": (RocAuc(),),
            "primary_metric": "roc_auc",
            "gate": GatePolicy(metric="roc_auc"),
        }
        with pytest.raises(ValidationError, match="estimators of binary need one"):
            Model(**GIVEN | changed)

    def test_without_a_label_no_group_is_known_to_be_positive(self):
        split = SPLIT.model_copy(update={"drop_known_positive_groups": "CUSTOMER_ID"})
        with pytest.raises(ValidationError, match="without a label nothing is positive"):
            Model(**GIVEN | {"split": split})


@pytest.mark.ray
@pytest.mark.parametrize(
    ("name", "changed"),
    [
        pytest.param(
            "isolation_forest",
            {"label": "TX_FRAUD", "metrics": (MeanScore(), AveragePrecision())},
            marks=pytest.mark.slow,
        ),
        ("k_means", {}),
    ],
)
def test_it_is_trained_measured_registered_and_answers(connected, tmp_path, name, changed):
    settings = build_features(settings_in(tmp_path))
    model = Model(**GIVEN | changed)
    run = train(settings, model, estimator=name, request_id="first")
    assert set(run.metrics) == {metric.name for metric in model.metrics}
    assert run.num_training_positives is None
    version = register(settings, run)
    package = verify(Path(version.path), settings, digest=version.digest)
    assert package.signature.label == changed.get("label")
    rows = real_rows(settings, run.training_set_id, package.signature.feature_names)
    scores = load_scorer((Path(version.path) / "model.onnx").read_bytes())(rows)
    assert np.isfinite(scores).all()
    assert np.ptp(scores) > 0.01
    (tracked,) = Tracking.open(settings).finished_runs("card_fraud")
    assert ("silhouette" in tracked.metrics) is (name == "k_means")
    verdict = reproduce(settings, run.run_id, request_id="again", anyway=True)
    assert verdict.verdict == "reproduced"


@pytest.mark.parametrize("name", ["isolation_forest", "k_means"])
def test_it_is_measured_on_folds(tmp_path, name):
    settings = build_features(settings_in(tmp_path))
    first = TimeSplit(
        train_start=FIRST_DAY,
        train_end=FIRST_DAY + 20 * DAY,
        test_start=FIRST_DAY + 20 * DAY,
        test_end=FIRST_DAY + 30 * DAY,
    )
    model = Model(**GIVEN | {"validation": PrequentialFolds(first=first, num_folds=2)})
    found = measure_on_folds(
        settings, model, estimator=name, request_id="folds", code=CodeState(commit="c0ffee")
    )
    assert len(found.folds) == 2
    summary = found.metrics["mean_score"]
    assert summary.low < summary.mean < summary.high
    assert found.folds[0].counts.num_test_positives is None


def test_folds_that_share_out_classes_are_refused(tmp_path):
    settings = build_features(settings_in(tmp_path))
    folds = RandomFolds(start=SPLIT.train_start, end=SPLIT.test_end, num_folds=2)
    model = Model(**GIVEN | {"validation": folds})
    with pytest.raises(DeclarationError, match="the model has no label"):
        measure_on_folds(
            settings, model, estimator="k_means", request_id="folds", code=CodeState(commit=None)
        )
