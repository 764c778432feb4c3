"""What is searched where nothing is declared: the families, their fields, and the scaling."""

from collections.abc import Mapping
from typing import Any, Literal

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
}


def families(model: Model) -> dict[str, tuple[Estimator, Search]]:
    """Give each family that suits the model's label, as it is by default, and its space."""
    linear: tuple[Estimator, Search]
    if model.task == "binary":
        linear = (
            LogisticRegression(),
            Search(inverse_regularization=Floats(1e-3, 100.0, log=True), scaling=_SCALINGS),
        )
    else:
        linear = Ridge(), Search(penalty=Floats(1e-3, 1e3, log=True), scaling=_SCALINGS)
    loss = _loss(model)
    criterion: Literal["gini", "squared_error"] = (
        "gini" if model.task == "binary" else "squared_error"
    )
    return {
        "linear": linear,
        "forest": (
            RandomForest(criterion=criterion, max_depth=20, min_samples_leaf=2),
            Search(
                num_trees=Ints(50, 200),
                max_depth=Ints(6, 30),
                min_samples_leaf=Ints(1, 30, log=True),
            ),
        ),
        "xgboost": (XGBoost(loss=loss), Search(max_depth=Ints(2, 9), **_BOOSTED)),
        "lightgbm": (
            LightGBM(loss=loss),
            Search(num_leaves=Ints(4, 127, log=True), **_BOOSTED),
        ),
        "mlp": (
            TorchMLP(loss=loss, num_epochs=10),
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
