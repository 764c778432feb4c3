"""A table's rows with a service's features as they were known at each row's time, slice by slice.

Scoring reads a table this way, in slices that fit in memory; a training set is the same join over
one period, with labels, kept for good.
"""

from datetime import datetime

import polars as pl

from penstock.errors import BusyError, DataError
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.pinned_rows import PinnedRows, TimeSlice
from penstock.features.service_join import ServiceJoin
from penstock.features.store import open_store
from penstock.settings import Settings


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
        self._use_case = use_case
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
        # The event time may be part of the key.
        self.row_columns = tuple(dict.fromkeys([*self.key, self.event_time]))
        self.feature_names = self._join.feature_names
        self.feature_table_versions = self._versions()

    def slices(
        self, start: datetime | None, end: datetime | None, *, max_rows: int
    ) -> list[TimeSlice]:
        """Cut the period into stretches of about `max_rows` rows, at whole hours.

        An hour is never cut: one with more rows than that is a slice of its own.
        """
        return self._rows.slices(start, end, max_rows=max_rows)

    def read(self, part: TimeSlice) -> pl.DataFrame:
        """Give the slice's rows in time order: the row key, the event time, the features.

        Raises:
            DataError: the table lacks a column that the service asks of a request.
        """
        wanted = [*self._join.join_keys, *self._join.request_columns]
        frame = self._rows.read(wanted, part.start, part.end)
        features = self._join.features(self._store, frame, self.event_time)
        told = frame.select(self.row_columns)
        clash = sorted(set(told.columns) & set(self.feature_names))
        if clash:
            raise DataError(f"{', '.join(clash)} is both a feature and part of {self.table}'s key")
        return told.with_columns(features[name].alias(name) for name in self.feature_names)

    def definition(self) -> str:
        """Give a digest that changes when the service, its views, functions or windows do."""
        return self._join.definition(load_feature_tables(self._settings, self._use_case))

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
