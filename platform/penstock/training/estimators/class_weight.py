"""What a positive row weighs in a fit."""

from penstock.errors import TrainingDataError
from penstock.training.estimators.base import Labels
from penstock.training.tree_declarations import PositiveWeight


def positive_weight(declared: PositiveWeight, labels: Labels) -> float | None:
    """Give the weight for the rows that are trained on; None: what all weigh.

    Raises:
        TrainingDataError: classes shall be balanced, and there is one class only.
    """
    if declared != "balanced":
        return declared
    num_positives = int(labels.sum())
    if not 0 < num_positives < len(labels):
        raise TrainingDataError(
            f"{num_positives:,} of the {len(labels):,} rows to train on are positive: "
            "one class cannot be balanced against the other",
            allowed="rows of both classes before those that early_stopping holds out",
            next_step="train on a longer stretch, or leave the balancing out of model.py",
        )
    return (len(labels) - num_positives) / num_positives
