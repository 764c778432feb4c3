"""A small table of its own for tests of the data room, and settings on a folder of the test."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pandera.polars as pa
import polars as pl

from penstock.data.contracts import Table
from penstock.settings import Settings

SPILLS = Table(
    name="river.spills",
    event_time="at",
    zone="Europe/Brussels",
    key=("id",),
    partition_by="day",
    schema=pa.DataFrameSchema(
        {
            "id": pa.Column(pl.Int64, pa.Check.ge(0)),
            "at": pa.Column(pl.Datetime("us", "UTC")),
            "litres": pa.Column(pl.Float64, pa.Check.in_range(0, 1000), nullable=True),
            "gate": pa.Column(pl.String, pa.Check.isin(["north", "south"]), nullable=True),
            "open": pa.Column(pl.Boolean),
        }
    ),
)


def settings_in(folder: Path) -> Settings:
    """Settings whose storage is in the folder, whatever the environment says."""
    return Settings(project_root=folder)


def spills(num_rows: int = 10, *, first: int = 0) -> pl.DataFrame:
    """Good rows, one a second from noon UTC on."""
    start = datetime(2024, 5, 1, 12, tzinfo=UTC)
    numbers = range(first, first + num_rows)
    return pl.DataFrame(
        {
            "id": list(numbers),
            "at": [start + timedelta(seconds=n) for n in numbers],
            "litres": [n % 1000 + 0.5 for n in numbers],
            "gate": ["north" if n % 2 else "south" for n in numbers],
            "open": [n % 3 == 0 for n in numbers],
        },
        schema=dict(SPILLS.columns),
    )
