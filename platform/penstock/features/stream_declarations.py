"""What a use case declares about its streams: which table grows by events, from which sources."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from penstock.data.events import DeclaredSource
from penstock.errors import DeclarationError, unknown_name
from penstock.settings import Settings
from penstock.use_cases import declared, import_declarations, split_name, use_case_folder

_MICROSECOND = timedelta(microseconds=1)


@dataclass(frozen=True, kw_only=True)
class Stream:
    """Events that go into a raw table one by one, and at once into the features made from it.

    Attributes:
        table: the raw table, e.g. `shop.orders`; its contract judges every event.
        sources: where events come from; all of them are read side by side.
        resolution: entities with so many events that they are not kept one by one have the edges
            of their windows moved back by less than this.
        flush_interval: after how long events are in the table at the latest; online they are at
            once.
        max_ahead: an event dated further ahead of the clock is quarantined: it would push all
            others out of the windows.

    Raises:
        DeclarationError: a part is out of range.
    """

    table: str
    sources: tuple[DeclaredSource, ...]
    resolution: timedelta = timedelta(minutes=1)
    flush_interval: timedelta = timedelta(seconds=30)
    max_ahead: timedelta = timedelta(minutes=10)

    def __post_init__(self) -> None:
        split_name(self.table)
        if not self.sources:
            raise DeclarationError(
                f"the stream of {self.table} has no source",
                allowed="Push(), KafkaTopic(topic=…), JsonLinesTail(path=…)",
            )
        if self.resolution < _MICROSECOND:
            raise DeclarationError(
                f"the stream of {self.table} has the resolution {self.resolution}",
                allowed="a time above zero",
            )
        if self.flush_interval <= timedelta(0) or self.max_ahead < timedelta(0):
            raise DeclarationError(
                f"the stream of {self.table} has the flush_interval {self.flush_interval} and "
                f"the max_ahead {self.max_ahead}",
                allowed="a flush_interval above zero, a max_ahead of zero or more",
            )


def load_streams(settings: Settings, use_case: str) -> dict[str, Stream]:
    """Import the streams of a use case, by the names of their tables; none where it has no file.

    Raises:
        NotFoundError: no such use case.
        DeclarationError: a table has two streams, or belongs to another use case.
    """
    if not (use_case_folder(settings, use_case) / "streams.py").is_file():
        return {}
    streams: dict[str, Stream] = {}
    for stream in declared(import_declarations(settings, use_case, "streams"), Stream):
        if split_name(stream.table)[0] != use_case:
            raise DeclarationError(
                f"{use_case}/streams.py declares a stream of {stream.table}",
                allowed=f"tables that start with {use_case}.",
            )
        if streams.setdefault(stream.table, stream) is not stream:
            raise DeclarationError(f"{use_case}/streams.py declares two streams of {stream.table}")
    return streams


def get_stream(settings: Settings, use_case: str, table: str | None = None) -> Stream:
    """Find the stream of a table; None: the only one of the use case.

    Raises:
        NotFoundError: there is no such stream.
        DeclarationError: there are several, and no table was named.
    """
    streams = load_streams(settings, use_case)
    if table is None and len(streams) > 1:
        raise DeclarationError(
            f"{use_case} declares {len(streams)} streams", allowed=", ".join(sorted(streams))
        )
    name = table if table is not None else next(iter(streams), use_case)
    if name not in streams:
        raise unknown_name("declared stream", name, streams)
    return streams[name]


def stream_lock(settings: Settings, table: str) -> Path:
    """Find the lock that a running stream of the table holds."""
    return settings.storage_path / "locks" / f"stream.{table}.lock"
