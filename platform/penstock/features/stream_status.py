"""Where a stream is, for those who do not run it."""

from collections.abc import Mapping

from penstock.data.contracts import get_table
from penstock.features.store import repo_config
from penstock.features.stream_declarations import stream_lock
from penstock.features.stream_online import notes_of
from penstock.features.stream_store import open_states
from penstock.features.stream_table import NO_VERSION, StreamTable
from penstock.locks import is_held
from penstock.records import Record
from penstock.settings import Settings


class StreamStatus(Record):
    """How far the events of a table are."""

    table: str
    is_running: bool
    version: int | None
    """The table's newest version; None: there is no table yet."""
    num_flushes: int
    in_table: Mapping[str, int]
    """By partition, the offset of the first event that the table does not have."""
    online: Mapping[str, int]
    """By partition, the offset of the first event that is not online yet."""


def stream_status(settings: Settings, table: str) -> StreamStatus:
    """Tell how far the stream of a table is, and whether one runs.

    Raises:
        NotFoundError: the use case declares no such table.
    """
    landed = StreamTable(settings, get_table(settings, table)).landed()
    return StreamStatus(
        table=table,
        is_running=is_held(stream_lock(settings, table)),
        version=None if landed.version == NO_VERSION else landed.version,
        num_flushes=landed.flush,
        in_table=landed.positions,
        online=applied_positions(settings, table),
    )


def applied_positions(settings: Settings, table: str) -> dict[str, int]:
    """By partition, the offset of the first event that is not online yet."""
    config = repo_config(settings)
    states = open_states(config)
    try:
        positions: dict[str, int] = (
            notes_of(config, states, table).read("applied").get("positions", {})
        )
    finally:
        states.close()
    return positions
