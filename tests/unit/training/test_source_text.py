"""A declaration as Python: what is written makes the same declaration."""

import pytest

from penstock.training import declarations
from penstock.training.declarations import (
    BoostingStop,
    Ensemble,
    LogisticRegression,
    Member,
    PreprocessingPolicy,
    ScikitEstimator,
    TorchMLP,
    XGBoost,
)
from penstock.training.source_text import as_source

DECLARED = [
    XGBoost(),
    XGBoost(num_rounds=197, learning_rate=0.1 + 0.2, early_stopping=BoostingStop()),
    TorchMLP(hidden_sizes=(8,), early_stopping=None),
    ScikitEstimator(estimator="a.b:C", options={"depth": 3, "name": "x'y", "more": None}),
    Ensemble(
        members=(
            Member(estimator=XGBoost(seed=4), weight=0.6),
            Member(
                estimator=LogisticRegression(inverse_regularization=0.5),
                preprocessing=PreprocessingPolicy(scaling="robust"),
                weight=0.4,
            ),
        )
    ),
]


@pytest.mark.parametrize("declared", DECLARED, ids=lambda each: each.kind)
def test_what_is_written_makes_the_same(declared):
    assert eval(as_source(declared), vars(declarations)) == declared  # noqa: S307  # our own text


def test_defaults_are_left_out():
    assert as_source(XGBoost(num_rounds=197)) == "XGBoost(num_rounds=197)"
