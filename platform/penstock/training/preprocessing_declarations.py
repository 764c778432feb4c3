"""How a use case declares what becomes of features before an estimator meets them."""

from typing import Literal, Self

from pydantic import Field, model_validator

from penstock.records import Declaration


class PreprocessingPolicy(Declaration):
    """Fitted on the training rows only, and part of the model version's one graph.

    In this order: missing values are filled, numbers are scaled, codes become columns, and what
    came out is projected onto its principal components where that is asked for.
    """

    imputation: Literal["mean", "median", "zero"] = "mean"
    """What a missing value becomes; mean and median are those of the training rows."""
    missing_flags: bool = False
    """A column more for each feature that some training row lacks: 1 where it is missing."""
    scaling: Literal["standard", "min_max", "robust", "none"] = "standard"
    """By mean and deviation; by smallest and largest; by median and the span of the middle half;
    or not at all."""
    categories: tuple[str, ...] = ()
    """Features whose numbers are codes: each code becomes a column of 0 and 1 (one-hot). A code
    that was rare or absent in training, or is missing, leaves all of its columns at 0."""
    max_categories: int = Field(default=32, ge=1)
    """How many codes of a feature get a column: the most frequent ones."""
    num_components: int | None = Field(default=None, ge=1)
    """Principal components instead of the columns themselves; None: no projection."""

    @model_validator(mode="after")
    def _check_categories(self) -> Self:
        if len(set(self.categories)) < len(self.categories):
            raise ValueError(f"categories names a feature twice: {', '.join(self.categories)}")
        return self
