"""Entity keys as Feast's online stores write them, a whole column of them at a time.

The layout is Feast's serialisation version 3 (`feast.infra.key_encoding_utils`): the number of join
keys, each join key's name, then each value, in the order of the sorted names; every part carries
its type and its length. Building one protobuf an entity to get there costs more than the lookup.
"""

import struct
from collections.abc import Mapping, Sequence

from feast.protos.feast.types.Value_pb2 import ValueType

from penstock.errors import DeclarationError

_INT64_HEAD = struct.pack("<II", ValueType.INT64, 8)
_INT64 = struct.Struct("<q")


def encode(columns: Mapping[str, Sequence[int] | Sequence[str]]) -> list[bytes]:
    """Give the key of each row from its join key columns (all of one length, no nulls).

    Raises:
        DeclarationError: a value is neither a whole number nor a text.
    """
    names = sorted(columns)
    prefix = struct.pack("<I", len(names)) + b"".join(_head(name.encode()) for name in names)
    parts = [_encode_values(name, columns[name]) for name in names]
    if len(parts) == 1:
        return [prefix + part for part in parts[0]]
    return [prefix + b"".join(values) for values in zip(*parts, strict=True)]


def _head(text: bytes) -> bytes:
    return struct.pack("<II", ValueType.STRING, len(text)) + text


def _encode_values(name: str, values: Sequence[int] | Sequence[str]) -> list[bytes]:
    if not len(values):
        return []
    if isinstance(values[0], str):
        return [_head(str(value).encode()) for value in values]
    try:
        return [_INT64_HEAD + _INT64.pack(value) for value in values]
    except struct.error as error:
        raise DeclarationError(
            f"the join key {name!r} has a value that is no entity key: {error}",
            allowed="whole numbers within 64 bits, or texts",
        ) from None
