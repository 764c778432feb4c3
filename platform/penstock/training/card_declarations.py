"""How a use case declares what its model card says: what it is for, limits, and slices."""

from collections.abc import Sequence
from typing import Self

from pydantic import Field, model_validator

from penstock.records import Record


class IntendedUse(Record):
    """What a model is for, and what it is not."""

    purpose: str = Field(min_length=1)
    """What is decided by its answers."""
    users: str = Field(min_length=1)
    """Who acts on them."""
    not_for: tuple[str, ...] = ()
    """Uses that look near and are not meant."""


class Slice(Record):
    """A cut of the test rows, each part of which is measured by itself.

    By a feature of the service, or by another column of the label table; at the edges where there
    are some, [lowest, edge), [edge, next), …, else by value.
    """

    feature: str | None = None
    column: str | None = None
    edges: tuple[float, ...] = ()
    max_values: int = Field(default=8, ge=1)
    """Without edges: its most frequent values; the rest are one part."""
    min_rows: int = Field(default=100, ge=1)
    """A part with fewer is called small: its metrics say little."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.feature is None) == (self.column is None):
            raise ValueError("a slice needs a feature or a column, one of them")
        if list(self.edges) != sorted(set(self.edges)):
            raise ValueError(f"the edges {self.edges} do not rise")
        return self

    @property
    def name(self) -> str:
        """What is cut."""
        return self.feature or self.column or ""


def extra_columns(slices: Sequence[Slice]) -> list[str]:
    """Name the columns that slices need beside the features."""
    return [each.column for each in slices if each.column is not None]
