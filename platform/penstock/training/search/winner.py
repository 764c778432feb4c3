"""Makes what a search found an estimator of its model."""

from penstock.errors import unknown_name
from penstock.training.declarations import Model
from penstock.training.search.summary import Tuning
from penstock.training.search_declarations import with_values

TUNED_SUFFIX = "_tuned"
AUTO = "auto"
"""The name of the estimator that a search of families ends with."""


def tuned_model(model: Model, tuning: Tuning) -> tuple[Model, str]:
    """Give the model with the best parameters as an estimator more, and that one's name."""
    if tuning.ensemble is not None:
        return model.model_copy(
            update={"estimators": {**model.estimators, AUTO: tuning.ensemble}}
        ), AUTO
    winner = tuning.winner
    if winner.estimator not in model.estimators:
        raise unknown_name(f"estimator of {model.name}", winner.estimator, model.estimators)
    config = tuning.tuned or with_values(
        model.estimators[winner.estimator], winner.params, of=f"trial {winner.number}"
    )
    name = f"{winner.estimator}{TUNED_SUFFIX}"
    return model.model_copy(update={"estimators": {**model.estimators, name: config}}), name
