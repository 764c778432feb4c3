"""The base of every record that travels between rooms: frozen, typed, refusing unknown fields."""

from pydantic import BaseModel, ConfigDict


class Record(BaseModel):
    """A small frozen fact that names its left neighbour, so that lineage is one walk."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=False)
