"""Kernel SHAP on real graphs of every family, beside Shapley's definition."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bundles import logistic_graph
from cases import some_slow
from explained import background_rows, package, shapley_values
from penstock.errors import IntegrityError, NotFoundError, RequestError
from penstock.scorer import load_scorer
from penstock.serving.shapley import Explainer
from penstock.training import bundle, preprocessing
from penstock.training.declarations import (
    DecisionTree,
    IsolationForest,
    KMeans,
    LightGBM,
    LogisticRegression,
    RandomForest,
    Ridge,
    TorchMLP,
    XGBoost,
)
from penstock.training.estimators import families, torch_build, torch_export, torch_nets
from penstock.training.estimators.base import FitJob, Fitted
from served_versions import no_number

NAMES = ("amount", "count_7d", "risk_7d", "constant")
FAMILIES = {
    "logistic_regression": LogisticRegression(),
    "ridge": Ridge(),
    "decision_tree": DecisionTree(max_depth=3),
    "random_forest": RandomForest(num_trees=5),
    "xgboost": XGBoost(num_rounds=10),
    "lightgbm": LightGBM(num_rounds=10, min_samples_leaf=5),
    "torch_mlp": TorchMLP(hidden_sizes=(8,)),
    "isolation_forest": IsolationForest(num_trees=10),
    "k_means": KMeans(num_clusters=3),
}
ROWS = st.lists(
    st.tuples(*[st.one_of(st.floats(-4, 4), st.just(float("nan")))] * len(NAMES)),
    min_size=1,
    max_size=2,
)


def some_rows(num_features: int = len(NAMES), num_rows: int = 400) -> np.ndarray:
    draw = np.random.default_rng(0)
    rows = draw.normal(size=(num_rows, num_features))
    rows[draw.random(rows.shape) < 0.05] = np.nan
    rows[:, -1] = 1.0
    return rows


def graph_of(config, rows: np.ndarray, names: tuple[str, ...]) -> bytes:
    filled = np.nan_to_num(rows)
    truth = filled[:, 0] * filled[:, 1] + filled[:, 2]
    labels = truth.astype(np.float32) if config.task == "regression" else (truth > 0.5)
    scaling = preprocessing.fit(rows, feature_names=names)
    labels = labels if config.task == "regression" else labels.astype(np.int8)
    if isinstance(config, TorchMLP):
        # Its weights as they are drawn: a net is fitted on Ray only.
        center, spread = torch_nets.standard(config, labels)
        net = torch_build.build(config, num_features=len(names))
        native = torch_export.TorchNet(
            net=net, config=config, num_features=len(names), center=center, spread=spread
        )
        return bundle.assemble(scaling, Fitted(native=native, onnx=torch_export.export(native)))
    job = FitJob(name="fit", checkpoints=Path())
    return bundle.assemble(scaling, families.fit_here(config, scaling.apply(rows), labels, job))


@cache
def made(family: str) -> tuple[Explainer, object, np.ndarray]:
    """The explainer, the bare scores, and the background."""
    rows = some_rows()
    found = package(graph_of(FAMILIES[family], rows, NAMES), rows, NAMES)
    return Explainer(found), load_scorer(found.onnx), background_rows(found)


# Each family has one graph as another has; a net's takes seconds to make.
@pytest.mark.parametrize(
    "family",
    some_slow(
        tuple(FAMILIES), in_every_run={"logistic_regression", "ridge", "xgboost", "lightgbm"}
    ),
)
class TestEveryFamily:
    @given(rows=ROWS)
    @settings(max_examples=10, deadline=None)
    def test_parts_add_up_to_the_score(self, family: str, rows):
        explainer, score, background = made(family)
        given_rows = np.array(rows)
        for row, told in zip(given_rows, explainer.attribute(given_rows), strict=True):
            assert told.score == score(row[None])[0]
            assert told.base_score == pytest.approx(score(background).mean())
            assert told.base_score + sum(told.contributions) == pytest.approx(told.score, abs=1e-6)

    def test_they_are_the_shapley_values(self, family: str):
        explainer, score, background = made(family)
        assert explainer.is_exact
        for row in some_rows()[:3]:
            (told,) = explainer.attribute(row[None])
            assert told.contributions == pytest.approx(
                shapley_values(score, row, background), abs=1e-6
            )

    def test_what_the_model_does_not_look_at_has_no_part(self, family: str):
        explainer, score, _ = made(family)
        row = np.array([[0.5, -1.0, 2.0, 1.0]])
        other = np.array([[0.5, -1.0, 2.0, 1.0 + 1e-7]])
        assert score(row) == pytest.approx(score(other), abs=1e-6)
        (told,) = explainer.attribute(row)
        assert told.contributions[-1] == pytest.approx(0.0, abs=1e-9)

    def test_the_same_row_has_the_same_parts_alone_and_among_others(self, family: str):
        explainer, _, _ = made(family)
        rows = some_rows()[:2]
        assert explainer.attribute(rows) == [explainer.attribute(row[None])[0] for row in rows]


def test_trees_that_never_split_on_a_feature_give_it_no_part_wherever_it_lies():
    explainer, _, _ = made("xgboost")
    (told,) = explainer.attribute(np.array([[0.5, -1.0, 2.0, 77.0]]))
    assert told.contributions[-1] == pytest.approx(0.0, abs=1e-9)
    assert any(part != 0 for part in told.contributions)


def test_beyond_eleven_features_parts_still_add_up_and_are_right_where_they_simply_add():
    names = tuple(f"f{n}" for n in range(15))
    rows = np.random.default_rng(1).normal(size=(300, 15))
    found = package(graph_of(Ridge(), rows, names), rows, names)
    explainer, score = Explainer(found), load_scorer(found.onnx)
    assert not explainer.is_exact
    background = background_rows(found)
    row = rows[0]
    (told,) = explainer.attribute(row[None])
    # Of a sum, a feature's part is what it alone changes.
    alone = np.repeat(background.mean(axis=0)[None], 15, axis=0)
    alone[np.arange(15), np.arange(15)] = row
    assert told.contributions == pytest.approx(score(alone) - told.base_score, abs=1e-5)
    assert told.base_score + sum(told.contributions) == pytest.approx(told.score, abs=1e-6)
    assert explainer.attribute(row[None]) == [told]


def test_words_and_numbers_of_a_row_come_together():
    explainer, _, _ = made("logistic_regression")
    (told,) = explainer.explain(np.array([[3.0, 0.1, np.nan, 1.0]]))
    assert told["missing"] == ["risk_7d"]
    assert told["text"].startswith(f"Score {told['score']:.3g}")
    assert {part["feature"] for part in told["contributions"]} == set(NAMES)


def test_a_version_without_background_is_refused_with_what_to_do():
    found = package(logistic_graph(), some_rows(3), NAMES[:3], background=False)
    with pytest.raises(NotFoundError, match=r"explanations=True.*train it again"):
        Explainer(found)


def test_a_background_of_other_features_is_refused():
    found = package(logistic_graph(), some_rows(3), NAMES[:3])
    other = package(logistic_graph(), some_rows(3), NAMES[1:])
    mixed = type(found)(files=other.files, signature=found.signature, manifest=found.manifest)
    with pytest.raises(IntegrityError, match="other features"):
        Explainer(mixed)


def test_a_row_without_a_finite_score_is_refused_where_it_stands():
    rows = np.nan_to_num(some_rows(3))
    explainer = Explainer(package(no_number(logistic_graph()), rows, NAMES[:3]))
    with pytest.raises(RequestError) as refused:
        explainer.attribute(np.array([[1.0, 1.0, 1.0], [np.nan, 1.0, 1.0]]))
    # The graph has no number for a row that has the first feature.
    assert (refused.value.code, refused.value.path) == ("no_score", "$.rows[0]")
