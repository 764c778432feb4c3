"""An estimator of scikit-learn, or of its interface, by import path; kept as its graph alone."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np

from penstock.errors import DeclarationError
from penstock.scorer import Scorer, load_scorer
from penstock.training.estimators.base import FitJob, Fitted, Labels, Scaled, Scores
from penstock.training.estimators.own_classes import call_with_options, extend_path, import_named
from penstock.training.single_estimators import ScikitEstimator

_GRAPH_FILE = "graph.onnx"
_NUM_COMPARED = 10_000
_MOST_APART = 1e-5
"""Of two scores, or of two numbers in shares of the largest; what a registration demands too."""


def fit_here(
    config: ScikitEstimator, scaled: Scaled, labels: Labels, job: FitJob | None = None
) -> Fitted:
    """Fit in this process; the estimator itself never leaves it, only its graph does.

    Raises:
        DeclarationError: it cannot be imported or called, does not fit, cannot be written as ONNX,
            or its graph gives other scores than it does.
    """
    native = fit_native(config, scaled, labels, job)
    return Fitted(native=native, onnx=native.graph)


def fit_native(
    config: ScikitEstimator, scaled: Scaled, labels: Labels, job: FitJob | None = None
) -> "GraphModel":
    """Fit as `fit_here` does: the graph is all that is kept of it."""
    extend_path(job.import_folders if job else ())
    estimator = _build(config)
    try:
        estimator.fit(scaled, labels)
    except (TypeError, ValueError) as error:
        raise DeclarationError(
            f"{config.estimator!r} cannot be fitted: {error}",
            next_step="correct its options in model.py, or the class",
        ) from error
    native = GraphModel(graph=_export(config, estimator, num_features=scaled.shape[1]))
    _check_same(config, estimator, native, scaled[:_NUM_COMPARED])
    return native


def _build(config: ScikitEstimator) -> Any:
    found = import_named(config.estimator, what="scikit-learn estimator")
    estimator = call_with_options(found, config.options, path=config.estimator)
    lacking = [name for name in ("fit", _predicts(config)) if not hasattr(estimator, name)]
    if lacking:
        raise DeclarationError(
            f"{config.estimator!r} gives a {type(estimator).__name__} without {lacking[0]}()",
            allowed="fit(X, y), and predict_proba(X) for two classes or predict(X) for a number",
        )
    # Seed and threads as for every other estimator, where the options leave them open. One thread
    # is what they take by themselves, and some say so in a warning when they are told.
    own = {"random_state": config.seed}
    if config.num_cpus > 1:
        own["n_jobs"] = config.num_cpus
    taken = estimator.get_params() if hasattr(estimator, "get_params") else {}
    open_ones = {
        name: own[name.rpartition("__")[2]]
        for name, value in taken.items()
        if value is None and name.rpartition("__")[2] in own
    }
    if open_ones:
        estimator.set_params(**open_ones)
    return estimator


def _predicts(config: ScikitEstimator) -> str:
    return "predict_proba" if config.task == "binary" else "predict"


def _export(config: ScikitEstimator, estimator: Any, *, num_features: int) -> bytes:
    from penstock.training.estimators import scikit

    try:
        if hasattr(estimator, "to_onnx"):
            graph: bytes = estimator.to_onnx(num_features).SerializeToString()
            return graph
        return scikit.export(estimator, config.task, num_features=num_features)
    except Exception as error:  # whatever a converter, or the user's, raises
        raise DeclarationError(
            f"{config.estimator!r} cannot be written as an ONNX graph: {error}",
            allowed="what skl2onnx converts, pipelines of such among them; or a class with "
            "to_onnx(num_features) that gives the graph, from `scaled` float32 [n, F] to `score` "
            "float32 [n]",
        ) from error


def _check_same(
    config: ScikitEstimator, estimator: Any, native: "GraphModel", scaled: Scaled
) -> None:
    theirs = np.asarray(getattr(estimator, _predicts(config))(scaled), dtype=np.float64)
    if config.task == "binary":
        theirs = theirs[:, 1]
    apart = np.abs(native.predict(scaled) - theirs).max()
    unit = 1.0 if config.task == "binary" else max(np.abs(theirs).max(), 1.0)
    if not apart <= _MOST_APART * unit:
        raise DeclarationError(
            f"the ONNX graph of {config.estimator!r} gives scores that are up to {apart:.2g} off "
            "its own",
            allowed=f"at most {_MOST_APART:g} on the first {len(scaled):,} training rows",
            next_step="use parts that compute in float32 as in float64, or write to_onnx() for it",
        )


@dataclass(frozen=True, kw_only=True)
class GraphModel:
    """A fitted estimator that is known by its graph only."""

    family: ClassVar[str] = "graph"
    graph: bytes

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        return self._score(scaled.astype(np.float64))

    @cached_property
    def _score(self) -> Scorer:
        import onnx

        from penstock.training.estimators.graph import assemble
        from penstock.training.preprocessing import Preprocessing

        shape = onnx.load_from_string(self.graph).graph.input[0].type.tensor_type.shape
        width = shape.dim[1].dim_value
        # Nothing is subtracted, and float64 is the same numbers.
        as_it_comes = Preprocessing(means=np.zeros(width), scales=np.ones(width))
        return load_scorer(assemble(as_it_comes, self.graph), num_features=width)

    def save(self, folder: Path) -> None:
        """Write graph.onnx."""
        (folder / _GRAPH_FILE).write_bytes(self.graph)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read graph.onnx."""
        return cls(graph=(folder / _GRAPH_FILE).read_bytes())
