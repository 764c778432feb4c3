import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from int8_runs import WIDE, put_net_in_place
from penstock.errors import GateRefusedError, IntegrityError
from penstock.handover import Int8
from penstock.registry import registration
from penstock.registry.agreement import Agreement, check_agreement
from penstock.registry.package import verify
from penstock.registry.registration import real_rows, register
from penstock.registry.versions import ModelRegistry, list_versions
from penstock.serving.predictor import Predictor
from penstock.settings import Settings
from small_model import SmallRun, prepare, train_small


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Settings, SmallRun]:
    settings = prepare(tmp_path_factory.mktemp("trained"), num_payments=600)
    return settings, train_small(settings, "run-1")


@pytest.fixture
def run(
    trained: tuple[Settings, SmallRun], tmp_path: Path, empty_database: Path
) -> tuple[Settings, SmallRun]:
    """The same run in a storage that the test may spoil, with an empty registry."""
    storage = tmp_path / "storage"
    shutil.copytree(trained[0].storage_path, storage)
    shutil.copy(empty_database, storage / "mlflow.db")
    settings = trained[0].model_copy(
        update={"storage": trained[0].storage.model_copy(update={"root": str(storage)})}
    )
    path = str(storage / "runs/run-1/bundle")
    return settings, SmallRun("run-1", trained[1].model, trained[1].training_set_id, path)


class TestRegister:
    def test_a_run_becomes_a_signed_version_and_the_challenger(self, run):
        settings, trained = run
        version = register(settings, trained)
        assert (version.version, version.aliases) == (1, ("challenger",))
        assert version.facts.agreement_rows == 600
        assert 0 < version.facts.agreement_max_difference < 1e-6
        package = verify(Path(version.path), settings, digest=version.digest)
        assert package.signature.feature_names[0] == "TX_AMOUNT"
        assert package.training["run_id"] == "run-1"
        card = package.files["card.md"].decode()
        assert trained.training_set_id in card
        assert "on 600 real rows" in card
        assert "| average_precision | 0.6000 |" in card

    def test_a_net_that_declares_int8_is_sealed_as_its_gate_decides(self, run):
        settings, trained = run
        asked = Int8(max_metric_loss=0.5, min_speedup=1, batch_sizes=(256,))
        put_net_in_place(settings, trained, WIDE, asked)
        trained_as = (Path(trained.bundle_path) / "model.onnx").read_bytes()
        version = register(settings, trained)
        package = verify(Path(version.path), settings, digest=version.digest)
        assert version.facts.quantization.startswith("served in int8: roc_auc ")
        assert package.quantization["evidence"]["num_rows"] == 600
        assert f"- {version.facts.quantization}" in package.files["card.md"].decode()
        assert len(package.onnx) < len(trained_as) / 2
        Predictor(package).check_golden_row()
        assert register(settings, trained) == version

    def test_a_second_call_finds_the_first_ones_version(self, run):
        settings, trained = run
        assert register(settings, trained) == register(settings, trained)
        assert len(list_versions(settings, trained.model)) == 1

    def test_an_older_run_registered_again_takes_nobodys_place(self, run):
        settings, trained = run
        register(settings, trained)
        folder = Path(trained.bundle_path).with_name("second")
        shutil.copytree(trained.bundle_path, folder)
        facts = json.loads((folder / "training.json").read_bytes())
        (folder / "training.json").write_text(json.dumps({**facts, "run_id": "run-2"}))
        other = SmallRun("run-2", trained.model, trained.training_set_id, str(folder))
        assert register(settings, other).aliases == ("challenger",)
        assert register(settings, trained).aliases == ()

    def test_native_weights_that_differ_from_the_graph_are_refused(self, run):
        settings, trained = run
        file = Path(trained.bundle_path) / "native/linear.json"
        parts = json.loads(file.read_bytes())
        file.write_text(json.dumps({**parts, "bias": parts["bias"] + 0.001}))
        with pytest.raises(GateRefusedError, match="disagree on"):
            register(settings, trained)
        assert ModelRegistry(settings).names() == []
        assert not settings.models_path.exists()

    def test_what_is_sealed_is_what_was_compared_whatever_happens_to_the_bundle(
        self, run, monkeypatch
    ):
        settings, trained = run
        graph = Path(trained.bundle_path) / "model.onnx"
        compared = graph.read_bytes()

        def compare_then_spoil(*arguments: object) -> Agreement:
            graph.write_bytes(b"evil")
            (graph.parent / "training.json").write_text("{}")
            return check_agreement(*arguments)

        monkeypatch.setattr(registration, "check_agreement", compare_then_spoil)
        version = register(settings, trained)
        package = verify(Path(version.path), settings)
        assert package.onnx == compared
        assert version.metrics == package.training["metrics"]

    def test_a_bundle_without_its_graph_is_refused(self, run):
        settings, trained = run
        (Path(trained.bundle_path) / "model.onnx").unlink()
        with pytest.raises(IntegrityError, match=r"no model\.onnx"):
            register(settings, trained)

    def test_a_folder_of_another_run_in_the_place_of_ours_is_never_taken_over(self, run):
        settings, trained = run
        version = register(settings, trained)
        other = SmallRun("run-2", trained.model, trained.training_set_id, trained.bundle_path)
        entry = ModelRegistry(settings).add_entry(trained.model, "run-2")
        # As if somebody had put a sealed folder where the next version goes.
        second = ModelRegistry(settings).folder(trained.model, entry.version)
        shutil.copytree(version.path, second)
        with pytest.raises(IntegrityError):
            register(settings, other)


def test_the_rows_that_are_compared_are_those_of_the_training_set(trained):
    settings, run = trained
    names = ("TX_AMOUNT", "CUSTOMER_ID_NB_TX_7DAY_WINDOW")
    rows = real_rows(settings, run.training_set_id, names)
    assert rows.shape == (600, 2)
    assert rows.dtype == np.float64
    assert (rows[:, 1] >= 1).all()
