"""What a reading is about: the station that counts its bikes."""

from feast import Entity, ValueType

station = Entity(
    name="station",
    join_keys=["station"],
    value_type=ValueType.STRING,
    description="A station of the bike share, by its name.",
)
