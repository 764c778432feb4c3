"""Feast's Redis online store, with an atomic guard and whole blocks of rows.

The stored layout is Feast's, so every Feast client can read it. Feast's own write reads the stored
event times, compares here and writes later, which lets two writers cross, and leaves a corrected
value of the same event time out. Here the comparison happens inside Redis, in one script a block.
"""

import struct
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any, Literal

import numpy as np
from feast import FeatureView
from feast.infra.online_stores.helpers import _mmh3, compute_versioned_name
from feast.infra.online_stores.redis import RedisOnlineStore, RedisOnlineStoreConfig
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import RepoConfig
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray
from redis import Redis
from redis.exceptions import RedisError

from penstock.features.online_rows import (
    NO_EVENT_US,
    ReadRows,
    WrittenRows,
    rows_from_feast,
    value_fields,
)

# Redis runs one script at a time: a block must end within a few milliseconds.
_ROWS_PER_SCRIPT = 250
_SCRIPTS_PER_PIPELINE = 8
_ClassPath = Literal["penstock.features.redis_online_store.GuardedRedisOnlineStore"]
_CLASS_PATH: _ClassPath = "penstock.features.redis_online_store.GuardedRedisOnlineStore"
_DOUBLE = struct.Struct("<d")
# How Value's double_val (field 6) and int64_val (field 4) begin on the wire.
_DOUBLE_TAG = Value(double_val=1.0).SerializeToString()[0]
_INT64_TAG = Value(int64_val=1).SerializeToString()[0]
_TAGGED_DOUBLE = np.dtype([("tag", "u1"), ("value", "<f8")])
_NAN = bytes([_DOUBLE_TAG]) + _DOUBLE.pack(np.nan)

# KEYS: one hash an entity. ARGV: number of features, the event time's field, the features' fields,
# then for each key its event time and its values. A Timestamp on the wire is two varints: tag 8,
# seconds, tag 16, nanoseconds. Equal times are written: that is how a correction arrives.
_WRITE_UNLESS_NEWER = """
local function parts(text)
  local seconds, nanos, at = 0, 0, 1
  while at <= #text do
    local tag = text:byte(at)
    local value, scale, byte = 0, 1, 128
    while byte >= 128 do
      at = at + 1
      byte = text:byte(at)
      value = value + (byte % 128) * scale
      scale = scale * 128
    end
    at = at + 1
    if tag == 8 then seconds = value else nanos = value end
  end
  if seconds >= 9223372036854775808 then seconds = seconds - 18446744073709551616 end
  return seconds, nanos
end
local width = tonumber(ARGV[1])
local at = width + 2
for _, key in ipairs(KEYS) do
  local event = ARGV[at + 1]
  local stored = redis.call('HGET', key, ARGV[2])
  local write = true
  if stored then
    local old_seconds, old_nanos = parts(stored)
    local new_seconds, new_nanos = parts(event)
    write = new_seconds > old_seconds or (new_seconds == old_seconds and new_nanos >= old_nanos)
  end
  if write then
    local fields = {ARGV[2], event}
    for i = 1, width do
      fields[#fields + 1] = ARGV[2 + i]
      fields[#fields + 1] = ARGV[at + 1 + i]
    end
    redis.call('HSET', key, unpack(fields))
  end
  at = at + 1 + width
end
return #KEYS
"""
# One command for a whole batch: as many HMGETs in a pipeline cost the client three times as much.
_READ = """
local found = {}
for i, key in ipairs(KEYS) do found[i] = redis.call('HMGET', key, unpack(ARGV)) end
return found
"""


class GuardedRedisOnlineStoreConfig(RedisOnlineStoreConfig):
    """Feast's configuration of Redis, under this store's class path."""

    type: _ClassPath = _CLASS_PATH  # type: ignore[assignment]  # feast fixes its own store's name


class GuardedRedisOnlineStore(RedisOnlineStore):
    """Feast's Redis store whose writes never put an older row over a newer one."""

    def write_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the rows; a stored row that is newer stays as it is. Atomic for each entity."""
        self._write(config, view, rows, over_newer=False)

    def replace_rows(self, config: RepoConfig, view: FeatureView, rows: WrittenRows) -> None:
        """Write the rows, over newer ones too. Atomic for each entity."""
        self._write(config, view, rows, over_newer=True)

    def _write(
        self, config: RepoConfig, view: FeatureView, rows: WrittenRows, *, over_newer: bool
    ) -> None:
        client = self._get_client(config.online_store)
        script = client.register_script(_WRITE_UNLESS_NEWER)
        name = _view_name(config, view)
        fields = value_fields(view)
        head = [len(rows.features), _time_field(name), *(_field(name, f) for f in rows.features)]
        columns = [_encode(fields[feature], values) for feature, values in rows.features.items()]
        times = [_timestamp(event_us) for event_us in rows.event_us]
        project = config.project.encode()
        size = _ROWS_PER_SCRIPT
        blocks = [slice(start, start + size) for start in range(0, len(rows.keys), size)]
        for first in range(0, len(blocks), _SCRIPTS_PER_PIPELINE):
            # Nobody may read between the loss of a row's time and the new row.
            with client.pipeline(transaction=over_newer) as pipe:
                for block in blocks[first : first + _SCRIPTS_PER_PIPELINE]:
                    if over_newer:
                        for key in rows.keys[block]:
                            pipe.hdel(key + project, _time_field(name))
                    values = zip(times[block], *(column[block] for column in columns), strict=True)
                    script(
                        keys=[key + project for key in rows.keys[block]],
                        args=[*head, *(part for row in values for part in row)],
                        client=pipe,
                    )
                    if config.online_store.key_ttl_seconds:
                        for key in rows.keys[block]:
                            pipe.expire(key + project, config.online_store.key_ttl_seconds)
                pipe.execute()

    def read_rows(
        self, config: RepoConfig, view: FeatureView, keys: Sequence[bytes], features: Sequence[str]
    ) -> ReadRows:
        """Read numeric features of many entities at once; a key may come more than once."""
        client = self._get_client(config.online_store)
        name = _view_name(config, view)
        fields = [_time_field(name), *(_field(name, feature) for feature in features)]
        project = config.project.encode()
        unique = {key: position for position, key in enumerate(dict.fromkeys(keys))}
        read = client.register_script(_READ)
        # Lua's unpack() and the time that Redis is held both want an end to a block.
        blocks = [
            list(unique)[at : at + _ROWS_PER_SCRIPT]
            for at in range(0, len(unique), _ROWS_PER_SCRIPT)
        ]
        answers = [
            answer
            for block in blocks
            for answer in read(keys=[key + project for key in block], args=fields)
        ]
        event_us = np.full(len(answers), NO_EVENT_US, dtype=np.int64)
        values = np.full((len(answers), len(features)), np.nan)
        for row, (time, *_) in enumerate(answers):
            if time is not None:
                stamp = Timestamp.FromString(time)
                event_us[row] = stamp.seconds * 1_000_000 + stamp.nanos // 1_000
        for column in range(len(features)):
            values[:, column] = _decode([answer[1 + column] for answer in answers])
        order = [unique[key] for key in keys]
        return ReadRows(event_us=event_us[order], values=values[order])

    def watch(self, config: RepoConfig) -> "_KeyChanges":
        """Let Redis say which keys are written."""
        return _KeyChanges(self._get_client(config.online_store), config.project.encode())

    def mark_filled(self, config: RepoConfig, view: FeatureView) -> None:
        """Note, among the rows, that the view was written as a whole."""
        self._get_client(config.online_store).set(_filled_key(config, view), 1)

    def is_filled(self, config: RepoConfig, view: FeatureView) -> bool:
        """Whether Redis still has that note: one that came back empty has not."""
        return bool(self._get_client(config.online_store).exists(_filled_key(config, view)))

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[tuple[EntityKey, dict[str, Value], datetime, datetime | None]],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Feast's way to write: by protobufs."""
        for rows in rows_from_feast(data):
            self.write_rows(config, table, rows)
            if progress:
                progress(len(rows.keys))

    def disconnect(self) -> None:
        """Close the connections; the next call opens them again."""
        if self._client is not None:
            self._client.close()
            self._client = None


class _KeyChanges:
    """Follows Redis' own notes of written keys: "Client-side caching", in broadcasting mode.

    One connection asks for the notes and listens to them. Where it breaks, anything may have been
    written until another one listens.
    """

    def __init__(self, client: Redis, project: bytes) -> None:
        self._client = client
        self._project = project
        # redis-py types no connection.
        self._connection: Any = None

    def take(self) -> Sequence[bytes] | None:
        """Give the entity keys of the notes that have come."""
        written: list[bytes] = []
        try:
            if self._connection is None:
                self._connection = self._listening()
                return None
            while self._connection.can_read(timeout=0):
                _kind, _channel, keys = self._connection.read_response()
                if keys is None:
                    return None  # All of it was flushed; what else waits is read the next time.
                written += (key.removesuffix(self._project) for key in keys)
        except RedisError:
            self.close()
            return None
        return written

    def _listening(self) -> Any:
        connection: Any = self._client.connection_pool.make_connection()
        try:
            connection.send_command("CLIENT", "ID")
            own_id = connection.read_response()
            connection.send_command("CLIENT", "TRACKING", "ON", "REDIRECT", own_id, "BCAST")
            connection.read_response()
            connection.send_command("SUBSCRIBE", "__redis__:invalidate")
            connection.read_response()
        except BaseException:
            connection.disconnect()
            raise
        return connection

    def close(self) -> None:
        """Stop listening."""
        if self._connection is not None:
            self._connection.disconnect()
            self._connection = None


def _view_name(config: RepoConfig, view: FeatureView) -> str:
    name: str = compute_versioned_name(view, config.registry.enable_online_feature_view_versioning)
    return name


def _filled_key(config: RepoConfig, view: FeatureView) -> bytes:
    return f"penstock:filled:{config.project}:{_view_name(config, view)}".encode()


def _time_field(view_name: str) -> bytes:
    return f"_ts:{view_name}".encode()


def _field(view_name: str, feature: str) -> bytes:
    field: bytes = _mmh3(f"{view_name}:{feature}")
    return field


def _timestamp(event_us: int) -> bytes:
    stamp = Timestamp(seconds=event_us // 1_000_000, nanos=event_us % 1_000_000 * 1_000)
    return bytes(stamp.SerializeToString())


def _encode(field: str, values: Iterable[Any]) -> list[bytes]:
    """Serialise a column; an absent value becomes an empty Value, which replaces a former one."""
    if field == "double_val":
        tag = bytes([_DOUBLE_TAG])
        return [b"" if v is None or v != v else tag + _DOUBLE.pack(v) for v in values]
    # Counts, flags and codes repeat: each distinct value is serialised once.
    seen: dict[Any, bytes] = {None: b""}
    encoded = []
    for value in values:
        if value not in seen:
            seen[value] = Value(**{field: value}).SerializeToString()
        encoded.append(seen[value])
    return encoded


def _decode(column: Sequence[bytes | None]) -> NDArray[np.float64]:
    """Numbers of one feature; NaN where there is none."""
    present = [raw or _NAN for raw in column]
    if set(map(len, present)) == {_TAGGED_DOUBLE.itemsize}:
        block = np.frombuffer(b"".join(present), dtype=_TAGGED_DOUBLE)
        if (block["tag"] == _DOUBLE_TAG).all():
            numbers: NDArray[np.float64] = block["value"]
            return numbers
    # Counts, flags and codes repeat: each distinct value is decoded once.
    distinct = {raw: _decode_one(raw) for raw in set(present)}
    return np.array([distinct[raw] for raw in present])


def _decode_one(raw: bytes) -> float:
    if raw[0] == _DOUBLE_TAG:
        value: float = _DOUBLE.unpack_from(raw, 1)[0]
        return value
    if raw[0] == _INT64_TAG and raw[-1] < 128 and len(raw) <= 10:
        number = 0
        for shift, byte in enumerate(raw[1:]):
            number |= (byte & 127) << (7 * shift)
        return float(number)
    parsed = Value.FromString(raw)
    kind = parsed.WhichOneof("val")
    return np.nan if kind in (None, "null_val") else float(getattr(parsed, kind))
