"""A small real bundle, as training leaves one: a logistic regression as ONNX and as plain JSON."""

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from penstock.settings import Settings

FEATURES = ("amount", "count_7d", "risk_7d")
MEANS = (50.0, 10.0, 0.01)
SCALES = (40.0, 5.0, 0.1)
WEIGHTS = (0.7, -0.2, 1.9)
BIAS = -3.0


def logistic_graph(*, bias: float = BIAS) -> bytes:
    """float64 [n, 3] with NaN for missing -> score float32 [n]; standardised in float64."""
    from onnx import TensorProto, checker, helper, numpy_helper

    def constant(name: str, value: object, dtype: type) -> object:
        return numpy_helper.from_array(np.asarray(value, dtype=dtype), name)

    nodes = [
        helper.make_node("IsNaN", ["features"], ["missing"]),
        helper.make_node("Where", ["missing", "means", "features"], ["filled"]),
        helper.make_node("Sub", ["filled", "means"], ["centred"]),
        helper.make_node("Div", ["centred", "scales"], ["scaled"]),
        helper.make_node("Cast", ["scaled"], ["single"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["single", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["logit"]),
        helper.make_node("Sigmoid", ["logit"], ["score"]),
    ]
    graph = helper.make_graph(
        nodes,
        "logistic",
        [helper.make_tensor_value_info("features", TensorProto.DOUBLE, ["n", len(FEATURES)])],
        [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["n"])],
        [
            constant("means", MEANS, np.float64),
            constant("scales", SCALES, np.float64),
            constant("weights", WEIGHTS, np.float32),
            constant("bias", bias, np.float32),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    checker.check_model(model)
    return model.SerializeToString()


def native_score(features: np.ndarray) -> np.ndarray:
    """The same model in numpy: float64 [n, 3] -> float64 [n]."""
    filled = np.where(np.isnan(features), MEANS, features)
    return 1 / (1 + np.exp(-(((filled - MEANS) / SCALES) @ np.asarray(WEIGHTS) + BIAS)))


def write_bundle(
    folder: Path,
    *,
    model: str = "spills",
    run_id: str = "run-1",
    training_set_id: str = "5e7" + "0" * 61,
    average_precision: float = 0.61,
    log_loss: float = 0.05,
    native_bias: float = BIAS,
) -> Path:
    """Write the bundle into the folder and give the folder back."""
    (folder / "native").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(logistic_graph())
    native = {
        "preprocessing": {"means": MEANS, "scales": SCALES},
        "family": {"family": "linear"},
        "linear": {"weights": WEIGHTS, "bias": native_bias},
    }
    for name, parts in native.items():
        (folder / f"native/{name}.json").write_text(json.dumps(parts))
    signature = {
        "model": model,
        "estimator": "logistic_regression",
        "use_case": "dam",
        "feature_service": "dam_v1",
        "feature_names": list(FEATURES),
        "request_fields": [
            {"name": "STATION", "dtype": "int64"},
            {"name": "MOMENT", "dtype": "timestamp"},
            {"name": "amount", "dtype": "float64"},
        ],
        "label": "SPILLED",
        "threshold": 0.5,
        "serving": {"max_requests_in_flight": 256},
    }
    training = {
        "run_id": run_id,
        "training_set_id": training_set_id,
        "table_versions": {"dam.readings": 3},
        "metrics": {
            "average_precision": average_precision,
            "roc_auc": 0.87,
            "log_loss": log_loss,
        },
        "git_commit": "0" * 40,
        "seed": 0,
    }
    (folder / "signature.json").write_text(json.dumps(signature))
    (folder / "training.json").write_text(json.dumps(training))
    return folder


def write_use_case(root: Path) -> None:
    """Declare the model `spills` in the feature repo of a project: what its gate asks for."""
    folder = root / "feature_repo/dam"
    folder.mkdir(parents=True)
    (folder / "tables.py").write_text("")
    (folder / "model.py").write_text(
        """
from datetime import datetime

from penstock.training.declarations import (
    GatePolicy, LeakAlarm, LogisticRegression, MetricBound, Model, TimeSplit,
)

model = Model(
    name="spills",
    label_table="dam.readings",
    label="SPILLED",
    feature_service="dam_v1",
    split=TimeSplit(
        train_start=datetime(2020, 1, 1), train_end=datetime(2020, 2, 1),
        test_start=datetime(2020, 2, 1), test_end=datetime(2020, 3, 1),
    ),
    estimators={"logistic_regression": LogisticRegression()},
    default_estimator="logistic_regression",
    primary_metric="average_precision",
    leak_alarm=LeakAlarm(max_plausible=0.75),
    gate=GatePolicy(
        metric="average_precision",
        min_gain=0.01,
        bounds=(MetricBound(metric="roc_auc", at_least=0.8),),
    ),
)
"""
    )


def new_project(root: Path, empty_database: Path) -> "Settings":
    """A project with the model `spills` declared, and a copy of an empty tracking database."""
    from penstock.settings import Settings

    settings = Settings(project_root=root)
    settings.storage_path.mkdir(parents=True)
    shutil.copy(empty_database, settings.storage_path / "mlflow.db")
    write_use_case(root)
    return settings


def empty_tracking_database(folder: Path) -> Path:
    """Let MLflow make its tables once: it takes seconds, a copy takes none."""
    from penstock.registry.versions import ModelRegistry
    from penstock.settings import Settings

    settings = Settings(project_root=folder)
    ModelRegistry(settings).names()
    return settings.storage_path / "mlflow.db"


def add_version(
    settings: "Settings", run_id: str, *, average_precision: float = 0.61, log_loss: float = 0.05
) -> int:
    """Seal and register a version, without the training set that a real registration needs."""
    from penstock.registry.package import read_bundle, seal
    from penstock.registry.versions import ModelRegistry, VersionFacts

    registry = ModelRegistry(settings)
    bundle = settings.project_root / "bundles" / run_id
    write_bundle(bundle, run_id=run_id, average_precision=average_precision, log_loss=log_loss)
    entry = registry.add_entry("spills", run_id)
    folder = registry.folder("spills", entry.version)
    manifest = seal(
        read_bundle(bundle, model="spills"), folder, settings, version=entry.version, card="# card"
    )
    facts = VersionFacts(
        digest=manifest.digest,
        use_case="dam",
        estimator="logistic_regression",
        training_set_id="5e7" + "0" * 61,
        metrics={"average_precision": average_precision, "roc_auc": 0.87, "log_loss": log_loss},
        agreement_rows=100,
        agreement_max_difference=1e-8,
    )
    registry.finish_entry(entry, facts)
    registry.set_aliases("spills", {"challenger": entry.version})
    return entry.version
