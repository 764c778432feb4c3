"""From published readings to bikes told half an hour ahead: keys of text, labels that are numbers."""

from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xgboost

from bikes import DECLARED, all_features, read_readings
from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource
from penstock.features.build import build
from penstock.features.materialize import materialize
from penstock.features.online import OnlineReader
from penstock.features.store import apply
from penstock.features.training_set import build_training_set, read_training_set
from penstock.progress import silent
from penstock.registry.package import verify
from penstock.registry.registration import register
from penstock.serving.batch import score_table
from penstock.settings import Settings
from penstock.training.declarations import load_model
from penstock.training.estimators import scikit, xgboost_trees
from penstock.training.estimators.base import Fitted
from penstock.training.folds import fit_folds
from penstock.training.metrics import evaluate
from penstock.training.trainer import train
from penstock.training.validation import suspect_leak
from projects import REPO_ROOT
from real_data import bike_readings

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("connected")]
USE_CASE = "bike_demand"
TABLE = "bike_demand.readings"
OUT = "bike_demand.scores"
# "This station's last reading that is at least 30 minutes old", over the whole stream.
LAST_KNOWN_READING = 2.21
PUBLISHED = 4.02


@pytest.fixture(scope="module")
def settings(tmp_path_factory, connected):
    """A storage with the readings, their features, and the newest of them online."""
    storage = tmp_path_factory.mktemp("bikes")
    settings = Settings(project_root=REPO_ROOT, storage={"root": str(storage)})
    report = ingest(settings, get_table(settings, TABLE), [FileSource(path=bike_readings())])
    # 30 readings stand twice, or beside another of the same station and moment.
    assert (report.num_read, report.num_kept) == (182_470, 182_440)
    build(settings, USE_CASE)
    apply(settings, [USE_CASE])
    materialize(settings, USE_CASE)
    return settings


@pytest.fixture(scope="module")
def model(settings):
    return load_model(settings, USE_CASE)


@pytest.fixture(scope="module")
def training_set(settings, model):
    return build_training_set(
        settings,
        use_case=USE_CASE,
        service=model.feature_service,
        label_table=TABLE,
        label=model.label,
        start=model.split.train_start_utc,
        end=model.split.test_end_utc,
    )


def measured(model, frame, feature_names, fit):
    """The metrics over all folds of the model's split, and those of its baseline."""
    folds = fit_folds(
        frame,
        model,
        event_time="moment",
        feature_names=feature_names,
        fit=fit,
        progress=silent,
    )
    return tuple(
        evaluate(model.metrics, folds.test, scores) for scores in (folds.scores, folds.guesses)
    )


def test_the_training_set_holds_what_the_declared_windows_hold(training_set):
    """The string keys find their own rows, and no other's."""
    rows = read_training_set(training_set)
    ours = read_readings()
    expected = all_features(ours).select(training_set.feature_names)
    assert rows.select("station", "moment", "bikes").equals(
        ours.select("station", "moment", "bikes").sort("moment", "station")
    )
    assert (
        rows.select(training_set.feature_names).cast(pl.Float64).equals(expected.cast(pl.Float64))
    )


def test_the_default_estimator_beats_the_last_known_reading(model, training_set):
    config = model.estimator()

    def fit(_fold, scaled, labels, _times):
        booster = xgboost.train(
            xgboost_trees.parameters(config, use_gpu=False),
            xgboost.DMatrix(scaled, label=labels),
            num_boost_round=config.num_rounds,
        )
        trees = xgboost_trees.BoostedTrees(booster=booster)
        return Fitted(native=trees, onnx=xgboost_trees.export(trees, config.task, scaled.shape[1]))

    rows = read_training_set(training_set)
    ours, last_known = measured(model, rows, training_set.feature_names, fit)
    assert suspect_leak(model.leak_alarm, ours) is None
    assert last_known["mean_absolute_error"] == pytest.approx(LAST_KNOWN_READING, abs=0.05)
    assert ours["mean_absolute_error"] < min(LAST_KNOWN_READING, PUBLISHED)
    assert all(ours[name] < last_known[name] for name in ours if name != "r2")


def test_features_without_the_labels_delay_are_called_a_leak(model):
    early = [replace(windows, delay=timedelta(0)) for windows in DECLARED]
    readings = read_readings()
    features = all_features(readings, early)
    frame = readings.select("moment", "bikes").hstack(features)
    config = model.estimator("ridge")
    # One fold says it.
    last = model.split.folds()[-1]
    found, _ = measured(
        model.model_copy(update={"split": last}),
        frame,
        tuple(features.columns),
        lambda _fold, scaled, labels, _times: scikit.fit_here(config, scaled, labels),
    )
    assert suspect_leak(model.leak_alarm, found) is not None


def test_a_run_becomes_a_version_that_gives_numbers_and_decides_nothing(settings, model):
    run = train(settings, model, estimator="ridge", request_id="bikes")
    assert run.num_training_positives is None
    assert run.metrics["mean_absolute_error"] < PUBLISHED
    version = register(settings, run)
    package = verify(Path(version.path), settings, digest=version.digest)
    assert package.signature.threshold is None
    assert ("station", "string") in [(f.name, f.dtype) for f in package.signature.request_fields]
    # The key of a reading holds its event time.
    report = score_table(
        settings, model=version, source=TABLE, out=OUT, start=datetime(2016, 10, 1)
    )
    scores = tables.scan(settings, OUT).collect()
    assert scores.columns[:3] == ["station", "moment", "score"]
    assert scores.height == report.num_rows == 4_612
    assert report.num_without_score == 0


def test_a_station_asked_for_by_name_is_answered_with_its_newest_row(settings, training_set):
    newest = (
        tables.scan(settings, TABLE)
        .sort("moment")
        .unique("station", keep="last", maintain_order=True)
        .collect()
    )
    reader = OnlineReader.open(settings, USE_CASE, "bike_demand_v1")
    try:
        names = [field.name for field in reader.request_fields]
        rows = newest.with_columns(pl.col("clouds", "humidity").cast(pl.Float64)).select(names)
        online = reader.read(rows.to_dicts())
    finally:
        reader.close()
    offline = read_training_set(training_set).join(
        newest.select("station", "moment"),
        on=["station", "moment"],
        how="semi",
        maintain_order="left",
    )
    expected = offline.select(training_set.feature_names).cast(pl.Float64).to_numpy()
    assert newest.height == 5
    np.testing.assert_array_equal(online.values, expected)
