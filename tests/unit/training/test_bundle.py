"""A bundle's graph and its native weights agree, for every family, on rows with gaps."""

import sys
import warnings
from pathlib import Path

import numpy as np
import orjson
import pytest
from sklearn.exceptions import ConvergenceWarning

from penstock.errors import IntegrityError
from penstock.scorer import load_scorer
from penstock.training import bundle, preprocessing
from penstock.training.declarations import (
    DecisionTree,
    IsolationForest,
    KMeans,
    LightGBM,
    LogisticRegression,
    PreprocessingPolicy,
    RandomForest,
    Ridge,
    ScikitEstimator,
    TorchMLP,
    TorchModule,
    XGBoost,
)
from penstock.training.estimators import (
    families,
    scikit,
    torch_build,
    torch_export,
    torch_nets,
)
from penstock.training.estimators.base import FitJob, Fitted

NAMES = tuple(f"f{i}" for i in range(6))
USERS_NET = """
import torch

class Wide(torch.nn.Module):
    def __init__(self, num_features):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(num_features)
        self.out = torch.nn.Linear(num_features, 1)

    def forward(self, rows):
        return self.out(torch.tanh(self.norm(rows)))
"""


def fit_alone(config, scaled, labels):
    return families.fit_here(config, scaled, labels, FitJob(name="fit", checkpoints=Path()))


def build_net(config, scaled, labels):
    net = torch_build.build(config, num_features=scaled.shape[1])
    center, spread = torch_nets.standard(config, labels)
    native = torch_export.TorchNet(
        net=net, config=config, num_features=scaled.shape[1], center=center, spread=spread
    )
    return Fitted(native=native, onnx=torch_export.export(native))


FAMILIES = {
    "logistic regression": (scikit.fit_here, LogisticRegression()),
    "decision tree": (scikit.fit_here, DecisionTree()),
    "random forest": (scikit.fit_here, RandomForest(num_trees=20)),
    "boosted trees": (fit_alone, XGBoost(num_rounds=20)),
    "boosted trees from a half": (fit_alone, XGBoost(num_rounds=20, initial_score=0.5)),
    "net": (build_net, TorchMLP(hidden_sizes=(16, 8), dropout=0.2)),
    "user's net": (build_net, TorchModule(module="reservoir_nets:Wide")),
    "ridge": (scikit.fit_here, Ridge()),
    "tree of numbers": (scikit.fit_here, DecisionTree(criterion="squared_error")),
    "forest of numbers": (scikit.fit_here, RandomForest(num_trees=20, criterion="squared_error")),
    "boosted trees of means": (fit_alone, XGBoost(num_rounds=20, loss="squared_error")),
    "boosted trees of medians": (fit_alone, XGBoost(num_rounds=20, loss="absolute_error")),
    "boosted trees from ten": (
        fit_alone,
        XGBoost(num_rounds=20, loss="squared_error", initial_score=10),
    ),
    "leaf-wise trees": (fit_alone, LightGBM(num_rounds=20)),
    "leaf-wise trees of means": (
        fit_alone,
        LightGBM(num_rounds=20, loss="squared_error"),
    ),
    "leaf-wise trees of medians": (
        fit_alone,
        LightGBM(num_rounds=20, loss="absolute_error"),
    ),
    "a user's pipeline": (fit_alone, ScikitEstimator(estimator="own_estimators:curved")),
    "isolation forest": (fit_alone, IsolationForest(num_trees=30)),
    "k-means": (fit_alone, KMeans(num_clusters=4, num_starts=1)),
    "net of numbers": (build_net, TorchMLP(hidden_sizes=(16, 8), loss="squared_error")),
}


@pytest.fixture(scope="module", params=FAMILIES)
def written(request, synthetic, tmp_path_factory):
    """The folder of a bundle, for each family."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "reservoir_nets.py").write_text(USERS_NET)
    sys.path.insert(0, str(folder))
    try:
        features, labels = synthetic
        fit, config = FAMILIES[request.param]
        if config.task == "regression":
            labels = number_labels(features)
        scaling = preprocessing.fit(features, feature_names=NAMES)
        fitted = fit(config, scaling.apply(features), labels)
        bundle.write(
            folder / "bundle",
            preprocessing=scaling,
            fitted=fitted,
            graph=bundle.assemble(scaling, fitted),
            signature={"feature_names": list(NAMES)},
            training={"run_id": "1"},
        )
        yield folder / "bundle"
    finally:
        sys.path.remove(str(folder))
        sys.modules.pop("reservoir_nets", None)


def number_labels(features):
    """Numbers around 20 that follow the features, some of them below zero."""
    filled = np.nan_to_num((features - np.nanmean(features, axis=0)) / np.nanstd(features, axis=0))
    return 20 + 9 * filled[:, 0] - 4 * filled[:, 1] * filled[:, 2]


def rows_with_gaps(features):
    rows = features.copy()
    rows[np.random.default_rng(1).random(rows.shape) < 0.3] = np.nan
    rows[0] = np.nan
    return rows


class TestAgreement:
    def test_graph_and_native_weights_agree_within_1e_5(self, written, synthetic):
        rows = np.concatenate([synthetic[0], rows_with_gaps(synthetic[0])])
        native = bundle.load_native(written)(rows)
        graph = load_scorer((written / "model.onnx").read_bytes())(rows)
        assert native.shape == graph.shape == (len(rows),)
        assert native.dtype == graph.dtype == np.float64
        assert np.abs(native - graph).max() < 1e-5 * max(1.0, np.abs(native).max())
        assert np.ptp(native) > 0.01, "the model says the same of every row: nothing was compared"

    @pytest.mark.parametrize("num_rows", [0, 1])
    def test_any_number_of_rows_is_answered(self, written, synthetic, num_rows):
        rows = synthetic[0][:num_rows]
        assert load_scorer((written / "model.onnx").read_bytes())(rows).shape == (num_rows,)
        assert bundle.load_native(written)(rows).shape == (num_rows,)

    def test_a_row_is_scored_alike_alone_and_in_company(self, written, synthetic):
        rows = synthetic[0][:20]
        predict = load_scorer((written / "model.onnx").read_bytes())
        alone = np.concatenate([predict(rows[i : i + 1]) for i in range(len(rows))])
        np.testing.assert_allclose(alone, predict(rows), rtol=1e-6, atol=1e-6)


POLICIES = {
    "median and flags": {"imputation": "median", "missing_flags": True},
    "zero and smallest to largest": {"imputation": "zero", "scaling": "min_max"},
    "robust": {"scaling": "robust"},
    "as it comes": {"scaling": "none"},
    "codes": {"categories": ("f4",), "max_categories": 5},
    "nothing but codes": {"categories": NAMES, "max_categories": 4},
    "components": {"num_components": 3},
    "all of it": {
        "imputation": "median",
        "scaling": "robust",
        "missing_flags": True,
        "categories": ("f4",),
        "num_components": 6,
    },
}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("config", [LogisticRegression(max_iterations=1000), DecisionTree()])
def test_whatever_is_declared_of_the_preprocessing_the_graph_agrees(
    synthetic, tmp_path, policy, config
):
    features, labels = synthetic
    asked = PreprocessingPolicy(**POLICIES[policy])
    # Fitted on a part: the other rows hold codes and values that it has not seen.
    scaling = preprocessing.fit(features[:500], feature_names=NAMES, policy=asked)
    with warnings.catch_warnings():
        # Unscaled features keep the solver from converging; what it has found is compared.
        warnings.simplefilter("ignore", ConvergenceWarning)
        fitted = scikit.fit_here(config, scaling.apply(features[:500]), labels[:500])
    graph = bundle.assemble(scaling, fitted)
    bundle.write(
        tmp_path / "bundle",
        preprocessing=scaling,
        fitted=fitted,
        graph=graph,
        signature={},
        training={},
    )
    rows = np.concatenate([features, rows_with_gaps(features)])
    native = bundle.load_native(tmp_path / "bundle")(rows)
    assert np.abs(native - load_scorer(graph, num_features=len(NAMES))(rows)).max() < 1e-5
    assert np.ptp(native) > 0.01, "the model says the same of every row: nothing was compared"


class TestFolder:
    def test_it_holds_no_pickle(self, written):
        for file in written.rglob("*"):
            if file.is_file():
                assert file.suffix in {".onnx", ".json", ".safetensors", ".ubj", ".txt"}
                # Protocol 2 and later begin so; a zip may hold one, and torch's does.
                assert not file.read_bytes().startswith((b"\x80", b"PK"))

    def test_a_native_file_that_is_gone_is_an_integrity_error(self, tmp_path):
        (tmp_path / "native").mkdir()
        with pytest.raises(IntegrityError, match="not whole"):
            bundle.load_native(tmp_path)

    def test_a_family_that_nobody_knows_is_refused(self, tmp_path):
        native = tmp_path / "native"
        native.mkdir()
        (native / "family.json").write_bytes(orjson.dumps({"family": "pickle"}))
        (native / "preprocessing.json").write_bytes(orjson.dumps({"means": [], "scales": []}))
        with pytest.raises(IntegrityError, match="unknown family 'pickle'"):
            bundle.load_native(tmp_path)
