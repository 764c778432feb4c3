"""The raw table of bike_demand and what its rows must satisfy."""

import pandera.polars as pa
import polars as pl

from penstock.data.contracts import Table

readings = Table(
    name="bike_demand.readings",
    event_time="moment",
    zone="UTC",
    key=("station", "moment"),
    partition_by="month",
    schema=pa.DataFrameSchema(
        {
            "moment": pa.Column(pl.Datetime("us", "UTC")),
            "station": pa.Column(pl.String, pa.Check.str_length(1, 100)),
            "bikes": pa.Column(pl.Int64, pa.Check.in_range(0, 1000)),
            "clouds": pa.Column(pl.Int64, pa.Check.in_range(0, 100)),
            "humidity": pa.Column(pl.Int64, pa.Check.in_range(0, 100)),
            "pressure": pa.Column(pl.Float64, pa.Check.in_range(850, 1100)),
            "temperature": pa.Column(pl.Float64, pa.Check.in_range(-60, 60)),
            "wind": pa.Column(pl.Float64, pa.Check.in_range(0, 120)),
            "description": pa.Column(pl.String),
        }
    ),
)
