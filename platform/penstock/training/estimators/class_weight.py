"""What a positive row weighs in a fit; needs no library, as nets need none but torch."""

from typing import TYPE_CHECKING

from penstock.errors import TrainingDataError

if TYPE_CHECKING:
    from penstock.training.estimators.base import Labels
    from penstock.training.tree_declarations import PositiveWeight


def positive_weight(declared: "PositiveWeight", labels: "Labels") -> float | None:
    """Give the weight for the rows that are trained on; None: what all weigh.

    Raises:
        TrainingDataError: classes shall be balanced, and there is one class only.
    """
    if declared != "balanced":
        return declared
    return balancing_weight(num_positives=int(labels.sum()), num_rows=len(labels))


def balancing_weight(*, num_positives: int, num_rows: int) -> float:
    """Give what a positive row weighs where both classes together weigh the same.

    Raises:
        TrainingDataError: there is one class only.
    """
    if not 0 < num_positives < num_rows:
        raise TrainingDataError(
            f"{num_positives:,} of the {num_rows:,} rows to train on are positive: "
            "one class cannot be balanced against the other",
            allowed="rows of both classes before those that early_stopping holds out",
            next_step="train on a longer stretch, or leave the balancing out of model.py",
        )
    return (num_rows - num_positives) / num_positives
