"""Estimators that need no labels: each fits as one Ray task, and is stored as arrays and JSON."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import onnx
import orjson
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import load_file, save_file

from penstock.errors import TrainingDataError
from penstock.training.declarations import IsolationForest, KMeans
from penstock.training.estimators.base import (
    INPUT,
    OUTPUT,
    FitJob,
    Fitted,
    Labels,
    NativeModel,
    Scaled,
    Scores,
)
from penstock.training.estimators.scikit import Forest

UnlabelledConfig = IsolationForest | KMeans
_OPSETS = {"": 18, "ai.onnx.ml": 3}
_IR_VERSION = 9
_CENTRES_FILE = "centres.safetensors"
_DEPTH_FILE = "usual_depth.json"
_ROWS_AT_ONCE = 65_536


def fit_here(
    config: UnlabelledConfig, scaled: Scaled, _labels: Labels, _job: FitJob | None = None
) -> Fitted:
    """Fit in this process; nobody looks at the labels.

    Raises:
        TrainingDataError: fewer different rows than clusters.
    """
    match config:
        case IsolationForest():
            trees = _fit_trees(config, scaled)
            return Fitted(native=trees, onnx=_trees_graph(trees, scaled.shape[1]))
        case KMeans():
            centres, quality = _fit_centres(config, scaled)
            return Fitted(native=centres, onnx=_centres_graph(centres), history=[quality])


def fit_native(
    config: UnlabelledConfig, scaled: Scaled, labels: Labels, _job: FitJob | None = None
) -> NativeModel:
    """Fit in this process; its graph costs next to nothing."""
    return fit_here(config, scaled, labels).native


def _fit_trees(config: IsolationForest, scaled: Scaled) -> "IsolationTrees":
    from sklearn.ensemble import IsolationForest as Isolating

    num_rows = min(config.num_rows_per_tree, len(scaled))
    fitted = Isolating(
        n_estimators=config.num_trees,
        max_samples=num_rows,
        random_state=config.seed,
        n_jobs=config.num_cpus,
    ).fit(scaled)
    return IsolationTrees.from_trees(
        [member.tree_ for member in fitted.estimators_],
        usual_depth=float(_mean_depth(np.asarray([num_rows]))[0]),
    )


def _fit_centres(config: KMeans, scaled: Scaled) -> tuple["Centres", dict[str, float]]:
    from sklearn.cluster import KMeans as Clustering
    from sklearn.metrics import davies_bouldin_score, silhouette_score

    if len(np.unique(scaled, axis=0)) < config.num_clusters:
        raise TrainingDataError(
            f"there are fewer different rows than the {config.num_clusters} clusters",
            next_step="lower num_clusters in model.py, or train on more rows",
        )
    fitted = Clustering(
        n_clusters=config.num_clusters,
        n_init=config.num_starts,
        max_iter=config.max_iterations,
        random_state=config.seed,
    ).fit(scaled.astype(np.float64))
    centres = Centres(centres=np.asarray(fitted.cluster_centers_, dtype=np.float64))
    rng = np.random.default_rng(config.seed)
    drawn = rng.permutation(len(scaled))[: config.silhouette_rows]
    rows, clusters = scaled[drawn], fitted.labels_[drawn]
    if len(np.unique(clusters)) in (1, len(rows)):
        return centres, {}
    return centres, {
        "silhouette": float(silhouette_score(rows, clusters)),
        "davies_bouldin": float(davies_bouldin_score(rows, clusters)),
    }


def _mean_depth(num_rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """The mean depth at which a search tree of so many rows ends.

    Source: Liu, Ting, Zhou, "Isolation forest", ICDM 2008, equation 1.
    """
    n = np.maximum(num_rows, 3).astype(np.float64)
    deep = 2.0 * (np.log(n - 1.0) + np.euler_gamma) - 2.0 * (n - 1.0) / n
    depths: npt.NDArray[np.float64] = np.select([num_rows <= 1, num_rows == 2], [0.0, 1.0], deep)
    return depths


@dataclass(frozen=True, kw_only=True)
class IsolationTrees:
    """Trees whose leaves say how deep a row lies: score = 2 ** -(mean depth / usual depth)."""

    family: ClassVar[str] = "isolation_forest"
    forest: Forest
    usual_depth: float

    @classmethod
    def from_trees(cls, trees: list[Any], *, usual_depth: float) -> Self:
        """Take the arrays out of scikit-learn's trees, thresholds rounded down to float32.

        A float32 is at or below a threshold exactly where it is so with the next lower float32.
        """
        forest = Forest.from_trees(trees)
        thresholds = forest.thresholds.astype(np.float32)
        above = thresholds > forest.thresholds
        thresholds[above] = np.nextafter(thresholds[above], np.float32(-np.inf))
        parts = dict(vars(forest)) | {
            "thresholds": thresholds.astype(np.float64),
            "scores": _depths(forest, np.concatenate([tree.n_node_samples for tree in trees])),
        }
        return cls(forest=Forest(**parts), usual_depth=usual_depth)

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        scores: Scores = np.exp2(-self.forest.predict(scaled) / self.usual_depth)
        return scores

    def save(self, folder: Path) -> None:
        """Write weights.safetensors and usual_depth.json."""
        self.forest.save(folder)
        (folder / _DEPTH_FILE).write_bytes(orjson.dumps({"usual_depth": self.usual_depth}))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read weights.safetensors and usual_depth.json."""
        return cls(forest=Forest.load(folder), **orjson.loads((folder / _DEPTH_FILE).read_bytes()))


def _depths(forest: Forest, num_rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Give each node's cuts from the root, and what further ones its rows would take."""
    depths = np.zeros(len(forest.left))
    nodes = forest.roots
    while len(nodes):
        inner = nodes[forest.left[nodes] != nodes]
        children = np.concatenate([forest.left[inner], forest.right[inner]])
        depths[children] = np.tile(depths[inner], 2) + 1
        nodes = children
    return depths + _mean_depth(num_rows)


def _trees_graph(trees: IsolationTrees, num_features: int) -> bytes:
    forest = trees.forest
    sizes = np.diff([*forest.roots, len(forest.left)])
    tree = np.repeat(np.arange(len(sizes)), sizes)
    node = np.arange(len(tree)) - forest.roots[tree]
    is_leaf = forest.left == np.arange(len(tree))
    depth = helper.make_node(
        "TreeEnsembleRegressor",
        [INPUT],
        ["depths"],
        domain="ai.onnx.ml",
        aggregate_function="AVERAGE",
        n_targets=1,
        nodes_treeids=tree.tolist(),
        nodes_nodeids=node.tolist(),
        nodes_featureids=forest.features.tolist(),
        nodes_values=forest.thresholds.tolist(),
        nodes_modes=["LEAF" if leaf else "BRANCH_LEQ" for leaf in is_leaf],
        nodes_truenodeids=np.where(is_leaf, 0, forest.left - forest.roots[tree]).tolist(),
        nodes_falsenodeids=np.where(is_leaf, 0, forest.right - forest.roots[tree]).tolist(),
        target_treeids=tree[is_leaf].tolist(),
        target_nodeids=node[is_leaf].tolist(),
        target_ids=[0] * int(is_leaf.sum()),
        target_weights=forest.scores[is_leaf].tolist(),
    )
    nodes = [
        depth,
        helper.make_node("Mul", ["depths", "per_usual_depth"], ["exponents"]),
        helper.make_node("Pow", ["two", "exponents"], ["columns"]),
        helper.make_node("Reshape", ["columns", "flat"], [OUTPUT]),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "per_usual_depth": np.asarray(-1.0 / trees.usual_depth, np.float32),
        "two": np.asarray(2.0, np.float32),
        "flat": np.asarray([-1], np.int64),
    }
    return _graph(nodes, constants, num_features)


@dataclass(frozen=True, kw_only=True)
class Centres:
    """Centres of clusters; the score is the distance from the nearest one."""

    family: ClassVar[str] = "k_means"
    centres: npt.NDArray[np.float64]
    """[k, F]"""

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        parts = [np.empty(0)]
        for start in range(0, len(scaled), _ROWS_AT_ONCE):
            rows = scaled[start : start + _ROWS_AT_ONCE].astype(np.float64)
            squares = [np.square(rows - centre).sum(axis=1) for centre in self.centres]
            parts.append(np.sqrt(np.min(squares, axis=0)))
        return np.concatenate(parts)

    def save(self, folder: Path) -> None:
        """Write centres.safetensors."""
        save_file({"centres": self.centres}, folder / _CENTRES_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read centres.safetensors."""
        return cls(**load_file(folder / _CENTRES_FILE))


def _centres_graph(model: Centres) -> bytes:
    nodes = [
        helper.make_node("Cast", [INPUT], ["rows"], to=TensorProto.DOUBLE),
        helper.make_node("Unsqueeze", ["rows", "middle"], ["apart"]),
        helper.make_node("Sub", ["apart", "centres"], ["ways"]),
        helper.make_node("Mul", ["ways", "ways"], ["squares"]),
        helper.make_node("ReduceSum", ["squares", "last"], ["sums"], keepdims=0),
        helper.make_node("ReduceMin", ["sums", "middle"], ["least"], keepdims=0),
        helper.make_node("Sqrt", ["least"], ["distances"]),
        helper.make_node("Cast", ["distances"], [OUTPUT], to=TensorProto.FLOAT),
    ]
    constants: dict[str, npt.NDArray[Any]] = {
        "centres": model.centres,
        "middle": np.asarray([1], np.int64),
        "last": np.asarray([2], np.int64),
    }
    return _graph(nodes, constants, model.centres.shape[1])


def _graph(
    nodes: list[onnx.NodeProto], constants: dict[str, npt.NDArray[Any]], num_features: int
) -> bytes:
    graph = helper.make_graph(
        nodes,
        "estimator",
        [helper.make_tensor_value_info(INPUT, TensorProto.FLOAT, ["n", num_features])],
        [helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["n"])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(domain, number) for domain, number in _OPSETS.items()],
        ir_version=_IR_VERSION,
    )
    serialised: bytes = model.SerializeToString()
    return serialised
