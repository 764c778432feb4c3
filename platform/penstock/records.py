"""The base of every record that travels between rooms: frozen, typed, refusing unknown fields."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


class Record(BaseModel):
    """A small frozen fact that names its left neighbour, so that lineage is one walk."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)


class Declaration(Record):
    """A record that people write: for a field that it has not, the nearest one is offered."""

    @model_validator(mode="before")
    @classmethod
    def _offer_nearest(cls, given: Any) -> Any:
        known = cls.model_fields
        unknown = [name for name in given if name not in known] if isinstance(given, dict) else []
        if unknown:
            near = difflib.get_close_matches(unknown[0], known, n=1, cutoff=0.5)
            offer = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(known)}"
            raise ValueError(f"{cls.__name__} has no field {unknown[0]!r}: {offer}")
        return given
