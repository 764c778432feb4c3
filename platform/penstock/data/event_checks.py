"""Holds single events against a table's contract: each is kept or told apart with its reason."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import polars as pl

from penstock.data.checks import BAD_ROWS, ROW, RawBlock, check
from penstock.data.contracts import Table
from penstock.data.events import Event

JSON_RULE = "json"
COLUMNS_RULE = "columns"
CLOCK_RULE = "clock"
_MAX_RECORD_CHARS = 10_000


@dataclass(frozen=True)
class CheckedEvents:
    """What came of some events.

    Attributes:
        kept: the contract's columns and `ROW`, the place among the events.
        bad: one line a bad event (`BAD_ROWS`), by its place too.
    """

    kept: pl.DataFrame
    bad: pl.DataFrame


def check_events(events: Sequence[Event], table: Table, *, latest_us: int) -> CheckedEvents:
    """Read each event as one JSON object and hold it against the contract.

    Args:
        events: as they came.
        table: the contract.
        latest_us: an event time after this is no time that a clock could have shown.

    Raises:
        DataError: a check of the contract failed for the events as a whole, not for single ones.
    """
    records: list[dict[str, Any]] = []
    places: list[int] = []
    bad: list[tuple[int, str, str, str | None, str]] = []
    is_strict = table.schema.strict is True
    for place, event in enumerate(events):
        try:
            record = orjson.loads(event.value)
        except orjson.JSONDecodeError as error:
            bad.append((place, "*", JSON_RULE, str(error), text_of(event)))
            continue
        if not isinstance(record, dict):
            bad.append((place, "*", JSON_RULE, type(record).__name__, text_of(event)))
            continue
        if is_strict and (unknown := sorted(record.keys() - table.columns.keys())):
            bad.append((place, "*", COLUMNS_RULE, ", ".join(unknown), text_of(event)))
            continue
        records.append(record)
        places.append(place)
    columns = {name: [record.get(name) for record in records] for name in table.columns}
    checked = check(RawBlock(0, columns, len(records)), table)
    place_of = pl.Series(places, dtype=pl.Int64)
    kept = checked.kept.with_columns(place_of.gather(checked.kept[ROW]).alias(ROW))
    broken = checked.bad.with_columns(place_of.gather(checked.bad["row"]).alias("row"))
    is_ahead = kept[table.event_time].to_physical() > latest_us
    if is_ahead.any():
        ahead = kept.filter(is_ahead)
        kept = kept.filter(~is_ahead)
        broken = pl.concat([broken, set_aside(events, ahead, (table.event_time,), CLOCK_RULE)])
    return CheckedEvents(
        kept, pl.concat([broken, pl.DataFrame(bad, schema=BAD_ROWS, orient="row")])
    )


def set_aside(
    events: Sequence[Event], rows: pl.DataFrame, columns: Sequence[str], rule: str
) -> pl.DataFrame:
    """Give the bad rows of kept events that break a rule which the contract does not know."""
    block = RawBlock(0, {s.name: s for s in rows}, rows.height)
    texts = [block.texts(column, range(rows.height)) for column in columns or ("*",)]
    return pl.DataFrame(
        {
            "row": rows[ROW],
            "column": [", ".join(columns)] * rows.height,
            "rule": [rule] * rows.height,
            "value": [", ".join(map(str, values)) for values in zip(*texts, strict=True)],
            "record": [text_of(events[place]) for place in rows[ROW].to_list()],
        },
        schema=BAD_ROWS,
    )


def text_of(event: Event) -> str:
    """The event as it was written, cut where it is long."""
    return event.value[: 4 * _MAX_RECORD_CHARS].decode(errors="replace")[:_MAX_RECORD_CHARS]
