"""Estimators of scikit-learn: each fits as one Ray task, and is stored as arrays and JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import numpy as np
import numpy.typing as npt
import orjson
from safetensors.numpy import load_file, save_file

from penstock.training.declarations import (
    DecisionTree,
    LogisticRegression,
    RandomForest,
    Ridge,
    Task,
)
from penstock.training.estimators.base import (
    INPUT,
    FitJob,
    Fitted,
    Labels,
    NativeModel,
    Scaled,
    Scores,
)
from penstock.training.estimators.class_weight import positive_weight

ScikitConfig = LogisticRegression | Ridge | DecisionTree | RandomForest
_OPSETS = {"": 18, "ai.onnx.ml": 3}
_WEIGHTS_FILE = "weights.safetensors"
_ROWS_AT_ONCE = 4096


def fit_here(
    config: ScikitConfig, scaled: Scaled, labels: Labels, _job: FitJob | None = None
) -> Fitted:
    """Fit in this process; the estimator itself never leaves it, only arrays and a graph do."""
    estimator = _fit(config, scaled, labels)
    graph = export(estimator, config.task, num_features=scaled.shape[1])
    return Fitted(native=_native(config, estimator), onnx=graph)


def fit_native(
    config: ScikitConfig, scaled: Scaled, labels: Labels, _job: FitJob | None = None
) -> NativeModel:
    """Fit in this process to arrays alone: whoever only wants scores pays for no graph."""
    return _native(config, _fit(config, scaled, labels))


def _native(config: ScikitConfig, estimator: Any) -> NativeModel:
    match config:
        case LogisticRegression():
            return LinearModel(
                weights=np.asarray(estimator.coef_[0], dtype=np.float64),
                bias=float(estimator.intercept_[0]),
            )
        case Ridge():
            return LinearModel(
                weights=np.asarray(estimator.coef_, dtype=np.float64),
                bias=float(estimator.intercept_),
                link="identity",
            )
        case DecisionTree():
            return Forest.from_trees([estimator.tree_])
        case RandomForest():
            return Forest.from_trees([member.tree_ for member in estimator.estimators_])


def _fit(config: ScikitConfig, scaled: Scaled, labels: Labels) -> Any:
    declared = None if isinstance(config, Ridge) else config.positive_weight
    weight = positive_weight(declared, labels)
    weights = None if weight is None else {0: 1.0, 1: weight}
    return _build(config, weights).fit(scaled, labels)


def _build(config: ScikitConfig, weights: Mapping[int, float] | None) -> Any:
    """Give the estimator as yet unfitted; `weights` are those of two classes."""
    # A regressor knows no such parameter.
    weighted = {} if weights is None else {"class_weight": weights}
    match config:
        case LogisticRegression():
            from sklearn.linear_model import LogisticRegression as Linear

            return Linear(
                C=config.inverse_regularization,
                max_iter=config.max_iterations,
                random_state=config.seed,
                **weighted,
            )
        case Ridge():
            from sklearn.linear_model import Ridge as LinearNumber

            return LinearNumber(alpha=config.penalty, random_state=config.seed)
        case DecisionTree():
            from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor

            kind = DecisionTreeClassifier if config.task == "binary" else DecisionTreeRegressor
            return kind(
                criterion=config.criterion,
                max_depth=config.max_depth,
                min_samples_leaf=config.min_samples_leaf,
                random_state=config.seed,
                **weighted,
            )
        case RandomForest():
            from sklearn.ensemble import RandomForestClassifier, RandomForestRegressor

            kind = RandomForestClassifier if config.task == "binary" else RandomForestRegressor
            return kind(
                n_estimators=config.num_trees,
                criterion=config.criterion,
                max_depth=config.max_depth,
                min_samples_leaf=config.min_samples_leaf,
                random_state=config.seed,
                n_jobs=config.num_cpus,
                **weighted,
            )


def export(estimator: Any, task: Task, *, num_features: int) -> bytes:
    """Give the graph of a fitted estimator, from float32 [n, F] to the score."""
    from skl2onnx import to_onnx
    from skl2onnx.common.data_types import FloatTensorType

    from penstock.training.estimators.graph import only_score

    model = to_onnx(
        estimator,
        initial_types=[(INPUT, FloatTensorType([None, num_features]))],
        options={id(estimator): {"zipmap": False}} if task == "binary" else None,
        target_opset=_OPSETS,
    )
    scoring = only_score(model, task, opset_of_added_nodes=_OPSETS[""])
    graph: bytes = scoring.SerializeToString()
    return graph


@dataclass(frozen=True, kw_only=True)
class LinearModel:
    """A linear model: score = weights . x + bias, or 1 / (1 + exp(-of it)) by the logit link."""

    family: ClassVar[str] = "linear"
    weights: npt.NDArray[np.float64]
    bias: float
    link: Literal["logit", "identity"] = "logit"

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        logits: Scores = scaled.astype(np.float64) @ self.weights + self.bias
        if self.link == "identity":
            return logits
        # exp of a large positive number overflows; this form only ever takes exp(-|x|).
        small = np.exp(-np.abs(logits))
        scores: Scores = np.where(logits >= 0, 1.0 / (1.0 + small), small / (1.0 + small))
        return scores

    def save(self, folder: Path) -> None:
        """Write linear.json."""
        parts = {"weights": self.weights.tolist(), "bias": self.bias, "link": self.link}
        (folder / "linear.json").write_bytes(orjson.dumps(parts))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read linear.json."""
        parts = orjson.loads((folder / "linear.json").read_bytes())
        return cls(
            weights=np.asarray(parts["weights"], dtype=np.float64),
            bias=parts["bias"],
            # Weights that were written before there was another one name none.
            link=parts.get("link", "logit"),
        )


@dataclass(frozen=True, kw_only=True)
class Forest:
    """Decision trees as flat arrays of nodes; the score is the mean over the trees' leaves."""

    family: ClassVar[str] = "forest"
    roots: npt.NDArray[np.int64]
    """[trees]: each tree's first node."""
    left: npt.NDArray[np.int64]
    """[nodes]: the node for `x[feature] <= threshold`; a leaf points at itself."""
    right: npt.NDArray[np.int64]
    features: npt.NDArray[np.int64]
    thresholds: npt.NDArray[np.float64]
    """[nodes], float64: rounding them to float32 would send boundary rows to the other side."""
    scores: npt.NDArray[np.float64]
    """[nodes]: the share of positives, or the mean of the labels."""

    @classmethod
    def from_trees(cls, trees: list[Any]) -> Self:
        """Take the arrays out of scikit-learn's trees."""
        sizes = [tree.node_count for tree in trees]
        roots = np.cumsum([0, *sizes[:-1]]).astype(np.int64)

        def joined(parts: list[npt.NDArray[Any]], dtype: type) -> npt.NDArray[Any]:
            return np.concatenate(parts).astype(dtype)

        own = [np.arange(size) + root for size, root in zip(sizes, roots, strict=True)]
        leaf = [tree.children_left < 0 for tree in trees]
        values = [tree.value[:, 0, :] for tree in trees]

        def child(side: str) -> npt.NDArray[np.int64]:
            return joined(
                [
                    np.where(is_leaf, itself, getattr(tree, side) + root)
                    for tree, root, is_leaf, itself in zip(trees, roots, leaf, own, strict=True)
                ],
                np.int64,
            )

        return cls(
            roots=roots,
            left=child("children_left"),
            right=child("children_right"),
            features=joined([np.maximum(tree.feature, 0) for tree in trees], np.int64),
            thresholds=joined([tree.threshold for tree in trees], np.float64),
            scores=joined(
                [v[:, 1] / v.sum(axis=1) if v.shape[1] == 2 else v[:, 0] for v in values],
                np.float64,
            ),
        )

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        parts = [
            self._predict(scaled[start : start + _ROWS_AT_ONCE])
            for start in range(0, len(scaled), _ROWS_AT_ONCE)
        ]
        return np.concatenate(parts) if parts else np.empty(0)

    def _predict(self, scaled: Scaled) -> Scores:
        nodes = np.broadcast_to(self.roots, (len(scaled), len(self.roots))).copy()
        rows = np.arange(len(scaled))[:, None]
        while True:
            goes_left = scaled[rows, self.features[nodes]] <= self.thresholds[nodes]
            after = np.where(goes_left, self.left[nodes], self.right[nodes])
            if np.array_equal(after, nodes):
                scores: Scores = self.scores[nodes].mean(axis=1)
                return scores
            nodes = after

    def save(self, folder: Path) -> None:
        """Write weights.safetensors."""
        save_file(dict(vars(self)), folder / _WEIGHTS_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read weights.safetensors."""
        return cls(**load_file(folder / _WEIGHTS_FILE))
