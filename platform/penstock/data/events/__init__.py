"""Events that arrive one by one: where a stream takes them from, and how far it has read.

A source is a set of partitions, each a log whose offsets rise. The table that the events land in
holds the positions, partition -> next offset: a source is opened there, whatever it remembers.
`opening.open_source` makes the source of what is declared here.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MAX_EVENT_BYTES = 1 << 20
"""A longer event is cut there: no JSON any more, so the contract's check sets it aside."""


@dataclass(frozen=True, slots=True)
class Event:
    """One event as it was written, with its place in its source."""

    partition: str
    offset: int
    next_offset: int
    """The position after it: the offset + 1, or in a file the byte after its line end."""
    value: bytes
    """One JSON object, if the one who wrote it kept to that."""


class EventSource(Protocol):
    """What a stream reads; one thread calls it."""

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        """Start to read.

        Args:
            positions: what the table has, partition -> next offset. A partition that is not named
                starts at its begin; partitions of other sources are passed over.
            before_revoke: called, in the thread of `poll`, before partitions are given to another
                reader: what was polled must be in the table when it returns.
        """

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        """Give at least one event as soon as there is one; none after `wait_s` without any.

        Within a partition events come in the order of their offsets.
        """

    def commit(self, positions: Mapping[str, int]) -> None:
        """Hear that the table has all events below these positions."""

    def lag(self) -> int | None:
        """Events that are known to wait; None: unknown."""

    def close(self) -> None:
        """Give everything back. Nothing is committed."""


@dataclass(frozen=True, kw_only=True)
class Push:
    """Events that are sent to `POST /v1/tables/<table>/events`."""


@dataclass(frozen=True, kw_only=True)
class KafkaTopic:
    """A topic of the Kafka that the settings name.

    Attributes:
        topic: its name.
        group: the consumer group; None: `penstock-<table>`.
    """

    topic: str
    group: str | None = None


@dataclass(frozen=True, kw_only=True)
class JsonLinesTail:
    """A JSON Lines file that another process appends to, through its rotations."""

    path: Path


DeclaredSource = Push | KafkaTopic | JsonLinesTail
