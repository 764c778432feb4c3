"""Gradient-boosted trees by LightGBM on Ray Train."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import lightgbm
import numpy as np

from penstock.training.declarations import LightGBM, Loss, Task
from penstock.training.estimators import boosting
from penstock.training.estimators.base import INPUT, Scaled, Scores

_OBJECTIVES: Mapping[Loss, str] = {
    "log_loss": "binary",
    "squared_error": "regression",
    "absolute_error": "regression_l1",
}
_MEASURES: Mapping[Loss, str] = {
    "log_loss": "binary_logloss",
    "squared_error": "rmse",
    "absolute_error": "l1",
}
_MODEL_FILE = "model.txt"
_OPSET = 15
_THRESHOLDS = re.compile(r"^threshold=(.*)$", re.MULTILINE)
_SIZES = re.compile(r"^tree_sizes=.*\n", re.MULTILINE)


def with_float32_thresholds(model: str) -> str:
    """Round each threshold of a model's text down to a float32, which an ONNX graph can hold.

    A float32 is at or below a threshold exactly where it is at or below the next lower float32: not
    one row goes another way.
    """

    def rounded(line: re.Match[str]) -> str:
        texts = (repr(float(_round_down(float(text)))) for text in line[1].split())
        return f"threshold={' '.join(texts)}"

    # The sizes of the trees' texts are for reading them side by side; without them it does without.
    return _SIZES.sub("", _THRESHOLDS.sub(rounded, model))


def _round_down(threshold: float) -> np.float32:
    with np.errstate(over="ignore"):
        nearest = np.float32(threshold)
    if float(nearest) <= threshold:
        return nearest
    lower: np.float32 = np.nextafter(nearest, np.float32(-math.inf))
    return lower


def parameters(config: LightGBM) -> dict[str, Any]:
    """Give LightGBM's own parameters for the declared ones."""
    return {
        "objective": _OBJECTIVES[config.loss],
        "metric": _MEASURES[config.loss],
        "num_threads": config.num_cpus_per_worker,
        "num_leaves": config.num_leaves,
        "max_depth": config.max_depth or -1,
        "learning_rate": config.learning_rate,
        "max_bin": config.max_bins,
        "min_data_in_leaf": config.min_samples_leaf,
        "min_sum_hessian_in_leaf": config.min_child_weight,
        "bagging_fraction": config.subsample,
        "bagging_freq": int(config.subsample < 1),
        "feature_fraction": config.column_sample_by_tree,
        "seed": config.seed,
        # The same trees whatever the machine is busy with; left to itself it times both ways.
        "deterministic": True,
        "force_row_wise": True,
        "verbosity": -1,
    }


class _LightGBM:
    """Grows trees on one worker's rows."""

    def __init__(
        self, config: LightGBM, rows: boosting.Rows, *, network: Mapping[str, Any]
    ) -> None:
        self._given = {**parameters(config), **network}
        if rows.positive_weight is not None:
            self._given["scale_pos_weight"] = rows.positive_weight
        # Trees of before are applied to the rows as they are, so these are kept.
        self._train = lightgbm.Dataset(
            rows.scaled, label=rows.labels, params=self._given, free_raw_data=False
        )
        self._sets = {"train": self._train}
        if rows.held_out is not None:
            scaled, labels = rows.held_out
            self._sets["validation"] = self._train.create_valid(scaled, label=labels)

    def grow(
        self,
        before: bytes | None,
        num_rounds: int,
        *,
        seed: int,
        after_round: boosting.AfterRound,
    ) -> bytes:
        def after_iteration(env: lightgbm.callback.CallbackEnv) -> None:
            losses = {
                f"{name}_loss": float(value)
                for name, _measure, value, *_ in env.evaluation_result_list or []
            }
            if after_round(losses, lambda: _dumped(env.model)):
                raise lightgbm.callback.EarlyStopException(env.iteration, [])

        booster = lightgbm.train(
            self._given | {"seed": seed},
            self._train,
            num_boost_round=num_rounds,
            valid_sets=list(self._sets.values()),
            valid_names=list(self._sets),
            init_model=lightgbm.Booster(model_str=before.decode()) if before else None,
            callbacks=[after_iteration],
        )
        return _dumped(booster)


def _dumped(booster: Any) -> bytes:
    # Else it leaves out what came after the best round that it knows of.
    text: str = booster.model_to_string(num_iteration=-1)
    return text.encode()


def export(trees: "LeafwiseTrees", task: Task, num_features: int) -> bytes:
    """Give the trees' graph, from float32 [n, F] to the score."""
    from onnxmltools import convert_lightgbm
    from onnxmltools.convert.common.data_types import FloatTensorType

    from penstock.training.estimators.graph import only_score

    model = convert_lightgbm(
        trees.booster,
        initial_types=[(INPUT, FloatTensorType([None, num_features]))],
        target_opset=_OPSET,
        zipmap=False,
    )
    for opset in model.opset_import:
        # It notes the oldest opset that its few nodes stand in, which all later ones hold too.
        if opset.domain == "":
            opset.version = _OPSET
    graph: bytes = only_score(model, task, opset_of_added_nodes=_OPSET).SerializeToString()
    return graph


@dataclass(frozen=True, kw_only=True)
class LeafwiseTrees:
    """A booster, stored in LightGBM's own text."""

    family: ClassVar[str] = "lightgbm"
    booster: lightgbm.Booster

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        if not len(scaled):
            return np.empty(0)
        scores: Scores = np.asarray(self.booster.predict(scaled), dtype=np.float64)
        return scores

    def save(self, folder: Path) -> None:
        """Write model.txt."""
        (folder / _MODEL_FILE).write_bytes(_dumped(self.booster))

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read model.txt."""
        return cls(booster=lightgbm.Booster(model_str=(folder / _MODEL_FILE).read_text()))


def _trainer() -> Any:
    from ray.train.lightgbm import LightGBMTrainer

    return LightGBMTrainer


def _start(config: LightGBM, rows: boosting.Rows, _use_gpu: bool, world: int) -> _LightGBM:
    network = {}
    if world > 1:
        from ray.train.lightgbm import get_network_params

        network = {"tree_learner": "data_parallel", "pre_partition": True, **get_network_params()}
    return _LightGBM(config, rows, network=network)


def _read(config: LightGBM, state: boosting.State) -> LeafwiseTrees:
    grown = lightgbm.Booster(model_str=(state.model or b"").decode())
    kept = grown.model_to_string(num_iteration=boosting.best_round(config, state.history))
    return LeafwiseTrees(booster=lightgbm.Booster(model_str=with_float32_thresholds(kept)))


FAMILY = boosting.Family(trainer=_trainer, start=_start, read=_read, export=export)
fit, fit_here, fit_native = FAMILY.fit, FAMILY.fit_here, FAMILY.fit_native
