"""Gradient-boosted trees by XGBoost on Ray Train."""

import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import xgboost

from penstock.training.declarations import Loss, Task, XGBoost
from penstock.training.estimators.base import INPUT, FitJob, Fitted, Labels, Scaled, Scores

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
_MODEL_FILE = "model.ubj"
_HISTORY = "history"
_ROUNDS_PER_CHECKPOINT = 25
# The newest opset that onnxmltools writes for XGBoost.
_OPSET = 15


def fit(config: XGBoost, scaled: Scaled, labels: Labels, job: FitJob) -> Fitted:
    """Fit on `config.num_workers` workers of Ray Train."""
    from ray.train.xgboost import XGBoostTrainer

    from penstock.training.estimators import distributed

    returned = distributed.run(XGBoostTrainer, _worker, config, scaled, labels, job, extra={})
    booster = xgboost.Booster(model_file=bytearray(returned["model"]))
    return Fitted(
        native=BoostedTrees(booster=booster),
        onnx=export(booster, config.task, num_features=scaled.shape[1]),
        history=returned["history"],
    )


def fit_here(config: XGBoost, scaled: Scaled, labels: Labels) -> Fitted:
    """Fit in this process, to the same trees as one worker of Ray Train."""
    evaluated: dict[str, dict[str, list[float]]] = {}
    train = xgboost.DMatrix(scaled, label=labels)
    booster = xgboost.train(
        parameters(config, use_gpu=False),
        train,
        num_boost_round=config.num_rounds,
        evals=[(train, "train")],
        evals_result=evaluated,
        verbose_eval=False,
    )
    losses = evaluated["train"][_MEASURES[config.loss]]
    return Fitted(
        native=BoostedTrees(booster=booster),
        onnx=export(booster, config.task, num_features=scaled.shape[1]),
        history=[{"train_loss": loss} for loss in losses],
    )


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


def _worker(parts: dict[str, Any]) -> dict[str, Any]:
    import ray

    from penstock.training.estimators import distributed

    config: XGBoost = parts["config"]
    rank, world = distributed.share()
    scaled, labels = ray.get([parts["scaled"], parts["labels"]])
    train = xgboost.DMatrix(scaled[rank::world], label=labels[rank::world])
    before = _resume()
    done = before.num_boosted_rounds() if before else 0
    history = json.loads(before.attr(_HISTORY) or "[]") if before else []
    booster = xgboost.train(
        parameters(config, use_gpu=parts["use_gpu"]),
        train,
        num_boost_round=max(config.num_rounds - done, 0),
        xgb_model=before,
        evals=[(train, "train")],
        verbose_eval=False,
        callbacks=[_Checkpoints(history, config, first=rank == 0)],
    )
    return {"model": bytes(booster.save_raw("ubj")), "history": history}


def _resume() -> xgboost.Booster | None:
    import ray.train

    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        return None
    with checkpoint.as_directory() as folder:
        return xgboost.Booster(model_file=Path(folder) / _MODEL_FILE)


class _Checkpoints(xgboost.callback.TrainingCallback):
    """Keeps the history by round and, every so often, a checkpoint to go on from."""

    def __init__(self, history: list[dict[str, float]], config: XGBoost, *, first: bool) -> None:
        super().__init__()
        self._history = history
        self._num_rounds = config.num_rounds
        self._measure = _MEASURES[config.loss]
        self._first = first

    def after_iteration(self, model: Any, epoch: int, evals_log: Any) -> bool:
        import ray.train

        loss = float(evals_log["train"][self._measure][-1])
        self._history.append({"train_loss": loss})
        done = len(self._history)
        if done % _ROUNDS_PER_CHECKPOINT and done != self._num_rounds:
            return False
        if not self._first:
            ray.train.report({"train_loss": loss})
            return False
        with tempfile.TemporaryDirectory() as folder:
            model.set_attr(**{_HISTORY: json.dumps(self._history)})
            model.save_model(Path(folder) / _MODEL_FILE)
            model.set_attr(**{_HISTORY: None})
            ray.train.report(
                {"train_loss": loss}, checkpoint=ray.train.Checkpoint.from_directory(folder)
            )
        return False


def export(booster: xgboost.Booster, task: Task, *, num_features: int) -> bytes:
    """Give the booster's graph, from float32 [n, F] to the score."""
    from onnxmltools import convert_xgboost
    from onnxmltools.convert.common.data_types import FloatTensorType

    from penstock.training.estimators.graph import only_score

    model = convert_xgboost(
        booster,
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
