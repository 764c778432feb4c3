"""A raw table's contract: its columns, keys and event time, declared beside the use case.

Types are never coerced: a file whose columns have other types is refused. What a contract says
about rows (null, range, membership, a custom check, a unique key) sends single rows to quarantine.
"""

import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass

import pandera.polars as pa
import polars as pl

from penstock.data.commit_stream import PartitionBy
from penstock.errors import DeclarationError, unknown_name
from penstock.settings import Settings
from penstock.use_cases import declared, import_declarations, split_name

EVENT_TIME = pl.Datetime("us", "UTC")
QUARANTINE_SUFFIX = "__quarantine"
_STORABLE = (
    pl.Int8,
    pl.Int16,
    pl.Int32,
    pl.Int64,
    pl.Float32,
    pl.Float64,
    pl.String,
    pl.Boolean,
    pl.Date,
)


@dataclass(frozen=True, kw_only=True)
class Table:
    """A raw table as its use case declares it.

    Attributes:
        name: qualified, `<use case>.<name>`.
        schema: the columns and their checks; every time is declared as `Datetime("us", "UTC")`.
            `strict=False` (pandera's default) leaves a file's other columns aside, `strict=True`
            refuses a file that has any.
        event_time: the column that says when the event happened.
        zone: the zone in which times without one are read; times with one are converted.
        key: the columns that together name a row; the first row of a key stays, later ones go to
            quarantine. Empty: rows are not compared.
        partition_by: how the stored files are split by event time.

    Raises:
        DeclarationError: the parts contradict each other.
    """

    name: str
    schema: pa.DataFrameSchema
    event_time: str
    zone: str = "UTC"
    key: tuple[str, ...] = ()
    partition_by: PartitionBy = "month"

    def __post_init__(self) -> None:
        split_name(self.name)
        if "__" in self.name:
            raise DeclarationError(
                f"the table name {self.name!r} has two underscores in a row",
                next_step="rename it: such names are kept for tables that Penstock makes itself",
            )
        for column in (self.event_time, *self.key):
            if column not in self.schema.columns:
                raise self._contradiction(f"names the column {column!r}, which its schema lacks")
            if self.schema.columns[column].nullable:
                raise self._contradiction(
                    f"may have nulls in {column!r}, its event time or part of its key"
                )
        for column, dtype in self.columns.items():
            if dtype != EVENT_TIME and dtype not in _STORABLE:
                raise self._contradiction(
                    f"declares {column!r} as {dtype}",
                    allowed=", ".join(["Datetime('us', 'UTC')", *(t.__name__ for t in _STORABLE)]),
                )
        if self.columns[self.event_time] != EVENT_TIME:
            raise self._contradiction(
                f"has the event time {self.event_time!r} as {self.columns[self.event_time]}",
                allowed="Datetime('us', 'UTC')",
            )
        if self.schema.unique or any(c.unique for c in self.schema.columns.values()):
            raise self._contradiction(
                "asks for unique columns in its schema", next_step="name them in key="
            )
        columns = self.schema.columns.values()
        if self.schema.coerce or any(c.coerce or not c.required for c in columns):
            raise self._contradiction(
                "has columns that are optional or coerced",
                next_step="use nullable=True, and declare the type that the sources have",
            )
        self._refuse_what_hides_bad_rows()
        try:
            zoneinfo.ZoneInfo(self.zone)
        except (zoneinfo.ZoneInfoNotFoundError, ValueError):
            raise self._contradiction(
                f"is read in the zone {self.zone!r}, which does not exist",
                allowed="an IANA name such as UTC or Europe/Brussels",
            ) from None

    def _refuse_what_hides_bad_rows(self) -> None:
        """Refuse options under which pandera is silent about a row that breaks a rule."""
        for part in (self.schema, *self.schema.columns.values()):
            options = [name for name in ("drop_invalid_rows", "parsers") if getattr(part, name)]
            if getattr(part, "default", None) is not None:
                options.append("default")
            for check in part.checks:
                options += [o for o in ("n_failure_cases", "raise_warning") if getattr(check, o)]
            if options:
                of = f" of its column {part.name!r}" if part is not self.schema else ""
                raise self._contradiction(
                    f"sets {', '.join(dict.fromkeys(options))} in the schema{of}",
                    next_step="leave it out: it would let rows that break the contract through",
                )

    def _contradiction(
        self, what: str, *, allowed: str | None = None, next_step: str | None = None
    ) -> DeclarationError:
        return DeclarationError(f"table {self.name} {what}", allowed=allowed, next_step=next_step)

    @property
    def columns(self) -> Mapping[str, pl.DataType]:
        """Every stored column with its type, in order."""
        return {name: column.dtype.type for name, column in self.schema.columns.items()}

    @property
    def quarantine_name(self) -> str:
        """The table that bad rows go to."""
        return self.name + QUARANTINE_SUFFIX


def load_tables(settings: Settings, use_case: str) -> dict[str, Table]:
    """Read every table that the use case declares in its tables.py, by qualified name.

    Raises:
        DeclarationError: a table stands twice, or under another use case's name.
    """
    tables: dict[str, Table] = {}
    for table in declared(import_declarations(settings, use_case, "tables"), Table):
        if split_name(table.name)[0] != use_case:
            raise DeclarationError(
                f"{use_case}/tables.py declares {table.name}",
                allowed=f"names that begin with {use_case}.",
            )
        if tables.setdefault(table.name, table) is not table:
            raise DeclarationError(f"{use_case}/tables.py declares {table.name} twice")
    return tables


def get_table(settings: Settings, qualified: str) -> Table:
    """Find the declaration of one table by its qualified name.

    Raises:
        NotFoundError: the use case declares no such table.
    """
    tables = load_tables(settings, split_name(qualified)[0])
    if qualified not in tables:
        raise unknown_name("declared table", qualified, tables)
    return tables[qualified]
