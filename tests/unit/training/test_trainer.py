"""A training from its tables to its bundle, on a share of the published payments."""

import json
from datetime import datetime, timedelta
from pathlib import Path

import mlflow
import numpy as np
import polars as pl
import pytest

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import GateRefusedError, TrainingDataError
from penstock.features.build import build
from penstock.features.store import apply
from penstock.features.training_set import (
    content_digest,
    load_training_set,
    read_training_set,
)
from penstock.handover import BACKGROUND_FILE, Background
from penstock.scorer import load_scorer
from penstock.settings import Settings
from penstock.settings_sections import TrainingSettings
from penstock.training import bundle, kept_rows
from penstock.training.code_state import CodeState, code_digest
from penstock.training.declarations import Int8, LeakAlarm, Model
from penstock.training.metrics import evaluate
from penstock.training.runs import Provenance, predictions_digest, run_folder
from penstock.training.tracking import REQUEST_TAG
from penstock.training.trainer import train
from projects import REPO_ROOT
from real_data import card_fraud_files

pytestmark = pytest.mark.ray
TABLE = "card_fraud.transactions"
CODE = CodeState(commit="c" * 40 + "-dirty", patch="diff --git a/x b/x\n")


@pytest.fixture(scope="module")
def settings(tmp_path_factory, connected):
    """A storage that holds the payments of 400 customers in July and August, and their features."""
    settings = Settings(
        project_root=REPO_ROOT, storage={"root": str(tmp_path_factory.mktemp("trained"))}
    )
    payments = (
        pl.concat(pl.read_parquet(file) for file in card_fraud_files("2018-07", "2018-08"))
        .filter(pl.col("CUSTOMER_ID") < 400)
        .with_columns(pl.col("TX_DATETIME").dt.replace_time_zone("UTC"))
    )
    columns = list(get_table(settings, TABLE).columns)
    tables.commit(settings, TABLE, payments.select(columns), mode="append")
    apply(settings, ["card_fraud"])
    build(settings, "card_fraud")
    return settings


@pytest.fixture(scope="module")
def client(settings):
    return mlflow.MlflowClient(tracking_uri=settings.tracking_uri)


@pytest.fixture(scope="module")
def trained(settings, card_fraud_model):
    return train(
        settings,
        card_fraud_model,
        estimator="logistic_regression",
        request_id="first",
        code=CODE,
    )


def runs_of(client, request_id):
    experiment = client.get_experiment_by_name("card_fraud")
    return client.search_runs([experiment.experiment_id], f"tags.`{REQUEST_TAG}` = '{request_id}'")


class TestRun:
    def test_it_names_its_training_set_and_the_versions_of_every_table(self, settings, trained):
        assert trained.table_versions == {
            TABLE: 0,
            "card_fraud.customer_windows": 0,
            "card_fraud.terminal_windows": 0,
        }
        frame = read_training_set(load_training_set(settings, trained.training_set_id))
        assert trained.num_training_rows + trained.num_test_rows < frame.height

    def test_it_names_all_that_it_stands_on(self, settings, client, trained):
        found = trained.provenance
        frame = read_training_set(load_training_set(settings, trained.training_set_id))
        assert kept_rows.read(run_folder(settings, trained.run_id)) is None
        assert found.training_set_digest == content_digest(frame)
        assert found.code_digest == code_digest(settings, "card_fraud")
        assert len(found.feature_service_digest) == 64
        assert found.hardware.num_nodes == 1
        assert found.num_threads == 1
        folder = settings.storage_path / "runs" / trained.run_id
        scores = np.load(folder / "test_scores.npy", allow_pickle=False)
        assert found.predictions_digest == predictions_digest(scores)
        assert len(scores) == trained.num_test_rows
        tags = client.get_run(trained.run_id).data.tags
        assert tags["penstock.predictions_digest"] == found.predictions_digest
        assert tags["penstock.feature_service_digest"] == found.feature_service_digest

    def test_it_gives_the_same_model_from_rows_that_lie_in_files(
        self, settings, client, card_fraud_model
    ):
        served = card_fraud_model.serving.model_copy(
            update={"quantization": Int8(max_metric_loss=0.01)}
        )
        model = card_fraud_model.model_copy(update={"serving": served})
        estimator = "logistic_regression"
        found = {}
        for place, allowed_bytes in (("memory", None), ("files", 0)):
            limited = settings.model_copy(
                update={"training": TrainingSettings(rows_memory_bytes=allowed_bytes)}
            )
            run = train(
                limited, model, estimator=estimator, request_id=f"{estimator}-{place}", code=CODE
            )
            told = client.get_run(run.run_id).data.tags["penstock.training_rows_lie_in"]
            assert told.startswith(f"{place}: ")
            assert not (settings.storage_path / "checkpoints" / run.run_id).exists()
            found[place] = run
        in_memory, in_files = found["memory"], found["files"]
        assert in_files.metrics == in_memory.metrics
        for digest in ("training_set_digest", "predictions_digest"):
            assert getattr(in_files.provenance, digest) == getattr(in_memory.provenance, digest)
        # Declared to be measured again in int8: what is kept gives the run's own metrics.
        folder = run_folder(settings, in_files.run_id)
        kept = kept_rows.read(folder)
        scores = load_scorer((folder / "bundle/model.onnx").read_bytes())(kept.features)
        assert evaluate(model.metrics, kept, scores) == pytest.approx(in_files.metrics)

    def test_its_bundle_holds_its_provenance_and_the_model_as_declared(
        self, settings, trained, card_fraud_model
    ):
        file = settings.storage_path / "runs" / trained.run_id / "bundle" / "training.json"
        recorded = json.loads(file.read_bytes())
        assert Provenance(**recorded["provenance"]) == trained.provenance
        declared = Model.model_validate(recorded["declaration"])
        assert list(declared.estimators) == ["logistic_regression"]
        assert declared.split == card_fraud_model.split
        assert declared.metrics == card_fraud_model.metrics

    def test_its_bundle_answers_and_both_halves_of_it_agree(self, settings, trained):
        training_set = load_training_set(settings, trained.training_set_id)
        frame = read_training_set(training_set).select(training_set.feature_names).cast(pl.Float64)
        rows = np.ascontiguousarray(frame.fill_null(np.nan).to_numpy())
        folder = settings.storage_path / "runs" / trained.run_id / "bundle"
        native, graph = (
            bundle.load_native(folder)(rows),
            load_scorer((folder / "model.onnx").read_bytes())(rows),
        )
        assert np.abs(native - graph).max() < 1e-5

    def test_its_bundle_holds_training_rows_to_explain_scores_against(self, settings, trained):
        folder = Path(trained.bundle_path)
        drawn = Background.model_validate_json((folder / BACKGROUND_FILE).read_bytes())
        names = json.loads((folder / "signature.json").read_bytes())["feature_names"]
        assert list(drawn.feature_names) == names
        assert len(drawn.rows) == 100
        # As they come: an amount has not been scaled.
        low, high = drawn.usual[names.index("TX_AMOUNT")]
        assert 0 < low < high
        assert high > 10

    def test_its_tracked_run_holds_params_metrics_curves_and_lineage(self, client, trained):
        found = client.get_run(trained.run_id)
        assert found.info.status == "FINISHED"
        assert found.data.params["inverse_regularization"] == "1.0"
        assert found.data.metrics["roc_auc"] == pytest.approx(trained.metrics["roc_auc"])
        assert found.data.tags["penstock.training_set"] == trained.training_set_id
        assert found.data.tags[f"penstock.table.{TABLE}"] == "0"
        names = {file.path for file in client.list_artifacts(trained.run_id)}
        assert {"roc.png", "precision_recall.png", "calibration.png", "environment.json"} <= names

    def test_what_differs_from_the_commit_is_kept_as_a_patch(self, settings, client, trained):
        assert trained.git_commit == CODE.commit
        folder = settings.storage_path / "runs" / trained.run_id
        assert (folder / "code.patch").read_text() == CODE.patch
        assert trained.provenance.patch_digest == CODE.patch_digest
        assert "code.patch" in {file.path for file in client.list_artifacts(trained.run_id)}

    def test_the_same_request_again_gives_the_same_run_and_begins_no_other(
        self, settings, client, card_fraud_model, trained
    ):
        again = train(
            settings, card_fraud_model, estimator="logistic_regression", request_id="first"
        )
        assert again == trained
        assert len(runs_of(client, "first")) == 1

    def test_a_run_killed_between_its_record_and_its_mark_is_marked_by_the_next_call(
        self, settings, client, card_fraud_model, trained
    ):
        client.update_run(trained.run_id, status="RUNNING")
        train(settings, card_fraud_model, estimator="logistic_regression", request_id="first")
        assert client.get_run(trained.run_id).info.status == "FINISHED"


class TestRestart:
    def test_a_run_that_was_stopped_goes_on_with_its_own_training_set(
        self, settings, client, card_fraud_model
    ):
        def stop_at_the_bundle(step, done, total=None, *, unit="rows"):
            if step.endswith(": bundle"):
                raise SystemExit(143)

        def attempt(**more):
            return train(
                settings, card_fraud_model, estimator="decision_tree", request_id="stopped", **more
            )

        with pytest.raises(SystemExit):
            attempt(progress=stop_at_the_bundle)
        (stopped,) = runs_of(client, "stopped")
        assert stopped.info.status == "KILLED"
        finished = attempt()
        assert finished.run_id == stopped.info.run_id
        assert finished.training_set_id == stopped.data.tags["penstock.training_set"]
        (after,) = runs_of(client, "stopped")
        assert after.info.status == "FINISHED"
        assert len(client.get_metric_history(finished.run_id, "roc_auc")) == 1


class TestRefusals:
    def test_a_metric_too_good_to_be_true_ends_the_run_as_a_leak(
        self, settings, client, card_fraud_model
    ):
        alarm = LeakAlarm(metric="average_precision", max_plausible=0.001)
        model = card_fraud_model.model_copy(update={"leak_alarm": alarm})
        with pytest.raises(GateRefusedError, match="leaked") as refused:
            train(settings, model, estimator="decision_tree", request_id="leak")
        assert refused.value.exit_code == 3
        (run,) = runs_of(client, "leak")
        assert run.info.status == "FAILED"
        assert not (settings.storage_path / "runs" / run.info.run_id).exists()

    def test_a_training_split_of_one_class_is_refused(self, settings, client, card_fraud_model):
        start = card_fraud_model.split.train_start
        split = card_fraud_model.split.model_copy(
            update={"train_end": start + timedelta(minutes=20)}
        )
        model = card_fraud_model.model_copy(update={"split": split})
        with pytest.raises(TrainingDataError, match="every label 'TX_FRAUD'"):
            train(settings, model, estimator="decision_tree", request_id="one-class")
        assert runs_of(client, "one-class")[0].info.status == "FAILED"

    def test_a_split_without_rows_is_refused(self, settings, card_fraud_model):
        year = timedelta(days=365)
        moments = ("train_start", "train_end", "test_start", "test_end")
        split = card_fraud_model.split.model_copy(
            update={name: getattr(card_fraud_model.split, name) + year for name in moments}
        )
        assert split.train_start > datetime(2019, 1, 1)
        model = card_fraud_model.model_copy(update={"split": split})
        with pytest.raises(TrainingDataError):
            train(settings, model, estimator="decision_tree", request_id="empty")
