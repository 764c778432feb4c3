"""A table's rows with a service's features as they were known at each row's time, slice by slice.

Scoring reads a table this way, in slices that fit in memory; a training set is the same join over
one period, with labels, kept for good.
"""

from datetime import datetime, timedelta

import polars as pl

from penstock.data import tables
from penstock.errors import BusyError, DataError
from penstock.features.declarations import load_feature_objects
from penstock.features.service_join import PinnedRows, ServiceJoin
from penstock.features.store import open_store
from penstock.records import Record
from penstock.settings import Settings


class TimeSlice(Record):
    """The rows with start <= event time < end."""

    start: datetime
    end: datetime
    num_rows: int


class HistoricalReader:
    """Reads slices of one version of a table, each row with the features known at its time."""

    def __init__(
        self,
        settings: Settings,
        *,
        use_case: str,
        service: str,
        table: str,
        version: int | None = None,
    ) -> None:
        """Open the table and the feature tables that the service stands on.

        Raises:
            NotFoundError: no such use case, service, table or version.
            UserError: rows were added to the table after the features were built from it.
        """
        self._settings = settings
        objects = load_feature_objects(settings, use_case)
        self._join = ServiceJoin(objects, objects.service(service))
        self._service_name = service
        self._rows = PinnedRows(settings, table, version)
        self._join.check_built(settings, self._rows)
        self._store = open_store(settings)
        self.table = table
        self.table_version = self._rows.version
        self.key = self._rows.key
        self.event_time = self._rows.event_time
        self.feature_names = self._join.feature_names
        self.feature_table_versions = self._versions()

    def slices(
        self, start: datetime | None, end: datetime | None, *, max_rows: int
    ) -> list[TimeSlice]:
        """Cut the period into stretches of about `max_rows` rows, at whole hours.

        An hour is never cut: one with more rows than that is a slice of its own.
        """
        time = pl.col(self.event_time)
        rows = tables.scan(self._settings, self.table, version=self.table_version).select(time)
        if start is not None:
            rows = rows.filter(time >= start)
        if end is not None:
            rows = rows.filter(time < end)
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
            found[0] = found[0].model_copy(update={"start": max(found[0].start, start)})
        if found and end is not None:
            found[-1] = found[-1].model_copy(update={"end": min(found[-1].end, end)})
        return found

    def read(self, part: TimeSlice) -> pl.DataFrame:
        """Give the slice's rows in time order: the row key, the event time, the features.

        Raises:
            DataError: the table lacks a column that the service asks of a request.
        """
        wanted = [*self._join.join_keys, *self._join.request_columns]
        frame = self._rows.read(wanted, part.start, part.end)
        features = self._join.features(self._store, frame, self.event_time)
        told = frame.select(*self.key, self.event_time)
        clash = sorted(set(told.columns) & set(self.feature_names))
        if clash:
            raise DataError(f"{', '.join(clash)} is both a feature and part of {self.table}'s key")
        return told.with_columns(features[name].alias(name) for name in self.feature_names)

    def check_unchanged(self) -> None:
        """See that all slices met the same feature tables.

        Raises:
            BusyError: a feature table got a new version since this reader was opened.
        """
        if self._versions() != self.feature_table_versions:
            raise BusyError(
                f"the feature tables behind {self._service_name} were rebuilt while they were read",
                next_step="try again when the build has ended",
            )

    def _versions(self) -> dict[str, int]:
        return self._join.source_versions(self._settings)
