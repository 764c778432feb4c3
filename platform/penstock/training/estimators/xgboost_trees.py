"""Gradient-boosted trees by XGBoost on Ray Train."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xgboost

from penstock.training.declarations import Loss, Task, XGBoost
from penstock.training.estimators import boosting
from penstock.training.estimators.base import INPUT, Scaled, Scores

_OBJECTIVES: Mapping[Loss, str] = {
    "log_loss": "binary:logistic",
    "squared_error": "reg:squarederror",
    "absolute_error": "reg:absoluteerror",
}
_MEASURES: Mapping[Loss, str] = {
    "log_loss": "logloss",
    "squared_error": "rmse",
    "absolute_error": "mae",
}
MEASURED_ROWS = 50_000
"""Training rows that a round's loss is measured on, at most."""
_MODEL_FILE = "model.ubj"
# The newest opset that onnxmltools writes for XGBoost.
_OPSET = 15


def parameters(config: XGBoost, *, use_gpu: bool) -> dict[str, Any]:
    """Give XGBoost's own parameters for the declared ones."""
    given: dict[str, Any] = {
        "objective": _OBJECTIVES[config.loss],
        "eval_metric": _MEASURES[config.loss],
        "tree_method": "hist",
        "device": "cuda" if use_gpu else "cpu",
        "nthread": config.num_cpus_per_worker,
        "seed": config.seed,
        "max_depth": config.max_depth,
        "learning_rate": config.learning_rate,
        "max_bin": config.max_bins,
        "min_child_weight": config.min_child_weight,
        "subsample": config.subsample,
        "colsample_bytree": config.column_sample_by_tree,
    }
    if config.initial_score is not None:
        given["base_score"] = config.initial_score
    return given


class _XGBoost:
    """Grows trees on one worker's rows."""

    def __init__(self, config: XGBoost, rows: boosting.Rows, *, use_gpu: bool) -> None:
        self._given = parameters(config, use_gpu=use_gpu)
        if rows.positive_weight is not None:
            self._given["scale_pos_weight"] = rows.positive_weight
        bins = {"max_bin": config.max_bins, "nthread": config.num_cpus_per_worker}
        # One pass to bins and no second copy of the rows; a DMatrix keeps both.
        self._train = xgboost.QuantileDMatrix(rows.scaled, label=rows.labels, **bins)
        self._matrices = [(self._measured(rows, bins), "train")]
        if rows.held_out is not None:
            scaled, labels = rows.held_out
            held_out = xgboost.QuantileDMatrix(scaled, label=labels, ref=self._train, **bins)
            self._matrices.append((held_out, "validation"))

    def _measured(self, rows: boosting.Rows, bins: Mapping[str, int]) -> xgboost.QuantileDMatrix:
        """Give what the training loss is measured on after each round: all rows, or every n-th.

        On 5 M rows measuring takes a quarter of the time that growing takes; on every 25th of them
        it still takes a twentieth.
        """
        step = -(-len(rows.labels) // MEASURED_ROWS)
        if step <= 1:
            return self._train
        scaled, labels = rows.scaled[::step], rows.labels[::step]
        return xgboost.QuantileDMatrix(scaled, label=labels, ref=self._train, **bins)

    def grow(
        self,
        before: bytes | None,
        num_rounds: int,
        *,
        seed: int,
        after_round: boosting.AfterRound,
    ) -> bytes:
        booster = xgboost.train(
            self._given | {"seed": seed},
            self._train,
            num_boost_round=num_rounds,
            xgb_model=xgboost.Booster(model_file=bytearray(before)) if before else None,
            evals=self._matrices,
            verbose_eval=False,
            callbacks=[_AfterRound(after_round)],
        )
        return _dumped(booster)


class _AfterRound(xgboost.callback.TrainingCallback):
    """Hands on what each round came to."""

    def __init__(self, after_round: boosting.AfterRound) -> None:
        super().__init__()
        self._after_round = after_round

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        losses = {
            f"{name}_loss": float(values[-1])
            for name, measured in evals_log.items()
            for values in measured.values()
        }
        return self._after_round(losses, lambda: _dumped(model))


def _dumped(booster: xgboost.Booster) -> bytes:
    return bytes(booster.save_raw("ubj"))


def export(trees: "BoostedTrees", task: Task, num_features: int) -> bytes:
    """Give the trees' graph, from float32 [n, F] to the score."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    from penstock.training.estimators.graph import only_score

    model = convert_xgboost(
        trees.booster,
        initial_types=[(INPUT, FloatTensorType([None, num_features]))],
        target_opset=_OPSET,
    )
    graph: bytes = only_score(model, task, opset_of_added_nodes=_OPSET).SerializeToString()
    return graph


@dataclass(frozen=True, kw_only=True)
class BoostedTrees:
    """A booster, stored in XGBoost's own UBJSON."""

    family: ClassVar[str] = "xgboost"
    booster: xgboost.Booster

    def predict(self, scaled: Scaled) -> Scores:
        """Give [n] scores."""
        if not len(scaled):
            # XGBoost warns of an empty matrix.
            return np.empty(0)
        scores: Scores = self.booster.predict(xgboost.DMatrix(scaled)).astype(np.float64)
        return scores

    def save(self, folder: Path) -> None:
        """Write model.ubj."""
        self.booster.save_model(folder / _MODEL_FILE)

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read model.ubj."""
        return cls(booster=xgboost.Booster(model_file=folder / _MODEL_FILE))


def _trainer() -> Any:
    from ray.train.xgboost import XGBoostTrainer

    return XGBoostTrainer


def _start(config: XGBoost, rows: boosting.Rows, use_gpu: bool, _world: int) -> _XGBoost:
    return _XGBoost(config, rows, use_gpu=use_gpu)


def _read(config: XGBoost, state: boosting.State) -> BoostedTrees:
    grown = xgboost.Booster(model_file=bytearray(state.model or b""))
    return BoostedTrees(booster=grown[: boosting.best_round(config, state.history)])


FAMILY = boosting.Family(trainer=_trainer, start=_start, read=_read, export=export)
fit, fit_here, fit_native = FAMILY.fit, FAMILY.fit_here, FAMILY.fit_native
