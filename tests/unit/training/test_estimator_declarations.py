"""What an estimator is for follows from what it makes small."""

import pytest
from pydantic import ValidationError

from penstock.training.declarations import (
    DecisionTree,
    LogisticRegression,
    RandomForest,
    Ridge,
    TorchMLP,
    XGBoost,
)


@pytest.mark.parametrize(
    ("estimator", "task"),
    [
        (LogisticRegression(), "binary"),
        (Ridge(), "regression"),
        (DecisionTree(), "binary"),
        (RandomForest(criterion="squared_error"), "regression"),
        (XGBoost(), "binary"),
        (XGBoost(loss="absolute_error"), "regression"),
        (TorchMLP(loss="squared_error"), "regression"),
    ],
)
def test_it_is_for_classes_or_for_numbers(estimator, task):
    assert estimator.task == task


def test_boosting_starts_from_a_probability_or_from_any_number():
    assert XGBoost(loss="squared_error", initial_score=-7).initial_score == -7
    for wrong in (0.0, 1.0, 7.0, float("nan")):
        with pytest.raises(ValidationError, match="initial_score"):
            XGBoost(initial_score=wrong)
