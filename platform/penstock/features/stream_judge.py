"""Judges events as they come: kept, or set aside with the rule that they break; and no other way
when they come again.

Whether a clock or a key speaks against an event depends on when it comes and after which others.
So what was set aside is written down until the table has it: a stream that was killed and reads
the same events again decides as before.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from penstock.data.checks import ROW
from penstock.data.contracts import Table
from penstock.data.event_checks import check_events, set_aside
from penstock.data.events import Event
from penstock.data.ingest import UNIQUE_RULE
from penstock.features.stream_online import NEXT
from penstock.features.stream_table import BAD_EVENTS, SOURCE, KeyMemory

Rejection = tuple[str, int, str, str]
"""Partition, offset, column and rule."""


@dataclass(frozen=True)
class Judged:
    """What came of some events.

    Attributes:
        kept: the contract's columns, `SOURCE`, `ROW` and `NEXT`: the place of each event.
        bad: the others (`BAD_EVENTS`).
        rejected: the same, to be written down.
        is_other: an event that may have been counted before was set aside now.
    """

    kept: pl.DataFrame
    bad: pl.DataFrame
    rejected: list[Rejection]
    is_other: bool


class Judge:
    """Holds events against the contract, the keys and its own former judgements."""

    def __init__(
        self,
        table: Table,
        keys: KeyMemory,
        *,
        rejected: Iterable[Sequence[Any]] = (),
        reached: Mapping[str, int] | None = None,
    ) -> None:
        """Take what a former stream wrote down.

        Args:
            table: the contract.
            keys: the keys that are known.
            rejected: `Rejection`s of events that the table does not have.
            reached: by partition, the position up to which events may have been counted.
        """
        self._table = table
        self._keys = keys
        self._rejected = {(p, o): (column, rule) for p, o, column, rule in rejected}
        self._reached = dict(reached or {})

    def rejections(self) -> list[Rejection]:
        """All that is to be remembered."""
        return [(*place, *why) for place, why in self._rejected.items()]

    def forget(self, positions: Mapping[str, int]) -> None:
        """Forget what lies below: the table has it, it does not come again."""
        self._rejected = {
            (partition, offset): why
            for (partition, offset), why in self._rejected.items()
            if offset >= positions.get(partition, 0)
        }
        self._reached = {p: n for p, n in self._reached.items() if n > positions.get(p, 0)}

    def judge(self, events: Sequence[Event], *, latest_us: int) -> Judged:
        """Judge some events; those that are kept make their keys known.

        Raises:
            DataError: the contract cannot judge single events.
        """
        checked = check_events(events, self._table, latest_us=latest_us)
        kept, bad = self._as_before(events, checked.kept, [checked.bad])
        known = self._keys.take(kept)
        if known:
            is_known = pl.repeat(False, kept.height, dtype=pl.Boolean, eager=True)
            is_known = is_known.scatter(known, True)
            bad.append(set_aside(events, kept.filter(is_known), self._table.key, UNIQUE_RULE))
            kept = kept.filter(~is_known)
        place = kept[ROW].to_list()
        placed = kept.select(
            *self._table.columns,
            pl.Series(SOURCE, [events[at].partition for at in place], dtype=pl.String),
            pl.Series(ROW, [events[at].offset for at in place], dtype=pl.Int64),
            pl.Series(NEXT, [events[at].next_offset for at in place], dtype=pl.Int64),
        )
        return self._judged(events, placed, pl.concat(bad))

    def _as_before(
        self, events: Sequence[Event], kept: pl.DataFrame, bad: list[pl.DataFrame]
    ) -> tuple[pl.DataFrame, list[pl.DataFrame]]:
        """Set aside what was set aside before, whatever speaks for it now."""
        if not self._rejected:
            return kept, bad
        why = {
            at: self._rejected.get((events[at].partition, events[at].offset))
            for at in kept[ROW].to_list()
        }
        for at, reason in why.items():
            if reason is not None:
                column, rule = reason
                names = [name for name in column.split(", ") if name in self._table.columns]
                row = set_aside(events, kept.filter(kept[ROW] == at), names, rule)
                bad.append(row.with_columns(pl.lit(column).alias("column")))
        is_kept = pl.Series([reason is None for reason in why.values()], dtype=pl.Boolean)
        return kept.filter(is_kept), bad

    def _judged(self, events: Sequence[Event], kept: pl.DataFrame, bad: pl.DataFrame) -> Judged:
        rejected: list[Rejection] = []
        is_other = False
        for at, column, rule in bad.select("row", "column", "rule").iter_rows():
            event = events[at]
            if (event.partition, event.offset) not in self._rejected:
                self._rejected[event.partition, event.offset] = (column, rule)
                rejected.append((event.partition, event.offset, column, rule))
                is_other |= event.offset < self._reached.get(event.partition, 0)
        place = bad["row"].to_list()
        told = bad.with_columns(
            pl.Series("source", [events[at].partition for at in place], dtype=pl.String),
            pl.Series("row", [events[at].offset for at in place], dtype=pl.Int64),
        )
        return Judged(kept, told.select(BAD_EVENTS.names()), rejected, is_other)
