"""A table's rows at one version, read by period, in time order."""

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import polars as pl

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import TrainingDataError, unknown_name
from penstock.records import Record
from penstock.settings import Settings


class TimeSlice(Record):
    """The rows with start <= event time < end."""

    start: datetime
    end: datetime
    num_rows: int


class PinnedRows:
    """A table with a contract, at one version."""

    def __init__(self, settings: Settings, name: str, version: int | None) -> None:
        """Pin the newest version, or the one asked for.

        Raises:
            NotFoundError: there is no such table or version.
        """
        contract = get_table(settings, name)
        self.name = name
        self.event_time = contract.event_time
        self.key = contract.key
        pinned = tables.latest(settings, name, version)
        self.version = pinned.version
        self.num_rows = pinned.num_rows
        self._rows = tables.scan(settings, name, version=self.version)

    def scan(self, columns: Sequence[str], start: datetime, end: datetime) -> pl.LazyFrame:
        """The columns, key and event time of start <= time < end, in time order, not read yet.

        Raises:
            NotFoundError: the table has no such column.
        """
        known = self._rows.collect_schema().names()
        for column in columns:
            if column not in known:
                raise unknown_name(f"column of {self.name}", column, known)
        time = pl.col(self.event_time)
        order = [self.event_time, *self.key]
        return (
            self._rows.filter((time >= _utc(start)) & (time < _utc(end)))
            .select(list(dict.fromkeys([*columns, *order])))
            .sort(order, maintain_order=True)
        )

    def read(self, columns: Sequence[str], start: datetime, end: datetime) -> pl.DataFrame:
        """Read what `scan` gives.

        Raises:
            NotFoundError: the table has no such column.
            TrainingDataError: there is no row in the period.
        """
        frame = self.scan(columns, start, end).collect()
        if not frame.height:
            raise self.no_rows(start, end)
        return frame

    def no_rows(self, start: datetime, end: datetime) -> TrainingDataError:
        """The error of a period without a row."""
        return TrainingDataError(
            f"{self.name} has no row from {_utc(start)} up to {_utc(end)}",
            next_step="ingest that period, or change the model's split",
        )

    def slices(
        self, start: datetime | None, end: datetime | None, *, max_rows: int
    ) -> list[TimeSlice]:
        """Cut the period into stretches of about `max_rows` rows, at whole hours.

        An hour is never cut: one with more rows than that is a slice of its own.
        """
        time = pl.col(self.event_time)
        rows = self._rows.select(time)
        if start is not None:
            rows = rows.filter(time >= _utc(start))
        if end is not None:
            rows = rows.filter(time < _utc(end))
        hours = rows.group_by(time.dt.truncate("1h").alias("hour")).len().sort("hour").collect()
        found: list[TimeSlice] = []
        for hour, num_rows in hours.iter_rows():
            until = hour + timedelta(hours=1)
            if found and found[-1].num_rows + num_rows <= max_rows:
                update = {"end": until, "num_rows": found[-1].num_rows + num_rows}
                found[-1] = found[-1].model_copy(update=update)
            else:
                found.append(TimeSlice(start=hour, end=until, num_rows=num_rows))
        if found and start is not None:
            found[0] = found[0].model_copy(update={"start": max(found[0].start, _utc(start))})
        if found and end is not None:
            found[-1] = found[-1].model_copy(update={"end": min(found[-1].end, _utc(end))})
        return found


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
