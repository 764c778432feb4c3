"""A small real bundle, as training leaves one: a logistic regression as ONNX and as plain JSON."""

import json
from pathlib import Path

import numpy as np

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


def write_bundle(folder: Path, *, model: str = "spills", run_id: str = "run-1") -> Path:
    """Write the bundle into the folder and give the folder back."""
    (folder / "native").mkdir(parents=True)
    (folder / "model.onnx").write_bytes(logistic_graph())
    (folder / "native/weights.json").write_text(
        json.dumps({"weights": WEIGHTS, "bias": BIAS, "means": MEANS, "scales": SCALES})
    )
    signature = {
        "model": model,
        "estimator": "logistic_regression",
        "use_case": "reservoir",
        "feature_service": "reservoir_v1",
        "feature_names": list(FEATURES),
        "request_fields": [
            {"name": "STATION", "dtype": "int64"},
            {"name": "MOMENT", "dtype": "timestamp"},
            {"name": "amount", "dtype": "float64"},
        ],
        "label": "SPILLED",
        "threshold": 0.5,
        "serving": {"max_ongoing_requests": 256},
    }
    training = {
        "run_id": run_id,
        "training_set_id": "5e7" + "0" * 61,
        "table_versions": {"reservoir.readings": 3},
        "metrics": {"average_precision": 0.61, "roc_auc": 0.87},
        "git_commit": "0" * 40,
        "seed": 0,
    }
    (folder / "signature.json").write_text(json.dumps(signature))
    (folder / "training.json").write_text(json.dumps(training))
    return folder
