"""What is searched where nothing is declared: the families, their fields, and the scaling."""

from collections.abc import Mapping
from typing import Any

from penstock.training.declarations import (
    Choice,
    Estimator,
    Floats,
    Ints,
    LightGBM,
    LogisticRegression,
    Model,
    PreprocessingPolicy,
    RandomForest,
    Ridge,
    Search,
    TorchMLP,
    XGBoost,
)
from penstock.training.estimator_base import DistributedEstimator, Loss

SCALING = "scaling"
"""Beside an estimator's own fields: how the columns are scaled that it meets."""
_SCALINGS = Choice(["standard", "robust", "min_max"])
_BOOSTED = {
    "num_rounds": Ints(20, 300, log=True),
    "learning_rate": Floats(0.02, 0.5, log=True),
    "subsample": Floats(0.5, 1.0),
    "column_sample_by_tree": Floats(0.4, 1.0),
    "min_child_weight": Floats(0.01, 30.0, log=True),
    "max_bins": Choice([256, 1024, 4096]),
}


def families(model: Model) -> dict[str, tuple[Estimator, Search]]:
    """Give each family that suits the model's label, and its space.

    A family begins as the model declares it, where it declares one of its kind.
    """
    loss = _loss(model)
    is_binary = model.task == "binary"
    line = LogisticRegression if is_binary else Ridge
    strength = "inverse_regularization" if is_binary else "penalty"
    small_net = TorchMLP(loss=loss, num_epochs=10)
    forest = RandomForest(
        criterion="gini" if is_binary else "squared_error", max_depth=20, min_samples_leaf=2
    )
    return {
        "linear": (
            _declared(model, line()),
            Search(**{strength: Floats(1e-3, 100.0, log=True), SCALING: _SCALINGS}),
        ),
        "forest": (
            _declared(model, forest),
            Search(
                num_trees=Ints(50, 200),
                max_depth=Ints(6, 30),
                min_samples_leaf=Ints(1, 30, log=True),
            ),
        ),
        "xgboost": (
            _declared(model, XGBoost(loss=loss)),
            Search(max_depth=Ints(2, 9), **_BOOSTED),
        ),
        "lightgbm": (
            _declared(model, LightGBM(loss=loss)),
            Search(num_leaves=Ints(4, 127, log=True), **_BOOSTED),
        ),
        "mlp": (
            _declared(model, small_net),
            Search(
                hidden_sizes=Choice([(32,), (64, 64), (128, 64)]),
                num_epochs=Ints(4, 20),
                learning_rate=Floats(3e-4, 1e-2, log=True),
                dropout=Floats(0.0, 0.4),
                batch_size=Choice([128, 256, 512]),
                scaling=_SCALINGS,
            ),
        ),
    }


def _declared(model: Model, otherwise: Estimator) -> Estimator:
    same = (each for each in model.estimators.values() if type(each) is type(otherwise))
    return next(same, otherwise)


def _loss(model: Model) -> Loss:
    """What the declared estimators make small: it says which guess at a number is wanted."""
    declared = [e.loss for e in model.estimators.values() if isinstance(e, DistributedEstimator)]
    return declared[0] if declared else ("log_loss" if model.task == "binary" else "squared_error")


def split_values(values: Mapping[str, Any]) -> tuple[dict[str, Any], PreprocessingPolicy | None]:
    """Part a trial's values into the estimator's own and what becomes of its columns."""
    own = {name: value for name, value in values.items() if name != SCALING}
    if SCALING not in values:
        return own, None
    return own, PreprocessingPolicy(scaling=values[SCALING])


def declared_values(config: Estimator, search: Search) -> dict[str, Any]:
    """Give what is declared of each searched field."""
    return {
        name: "standard" if name == SCALING else getattr(config, name) for name in search.dimensions
    }
