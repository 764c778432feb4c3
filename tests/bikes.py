"""The published bike readings, and their features as bike_demand declares them."""

from collections.abc import Iterable

import polars as pl

from bike_demand import feature_tables
from bike_demand.transforms import WEATHER, request_features
from penstock.features.declarations import FeatureTable
from penstock.features.windows import Windows, compute
from real_data import bike_readings

TABLES: tuple[FeatureTable, ...] = (
    feature_tables.newest,
    feature_tables.recent,
    feature_tables.day_before,
    feature_tables.week_before,
)
DECLARED = tuple(table.windows for table in TABLES)


def read_readings() -> pl.DataFrame:
    """Every reading in time order, the first of each station and moment, as the table has them."""
    return (
        pl.read_parquet(bike_readings())
        .unique(["station", "moment"], keep="first", maintain_order=True)
        .sort("moment", "station")
        .with_columns(pl.col("moment").dt.replace_time_zone("UTC"))
    )


def window_features(readings: pl.DataFrame, windows: Iterable[Windows] = DECLARED) -> pl.DataFrame:
    """What the past says, for each reading."""
    parts = [compute(readings, each).select(each.feature_names()) for each in windows]
    return pl.concat(parts, how="horizontal")


def all_features(readings: pl.DataFrame, windows: Iterable[Windows] = DECLARED) -> pl.DataFrame:
    """What the past says, and the request itself."""
    inputs = {name: readings[name].to_numpy() for name in ("station", *WEATHER)}
    inputs["moment"] = readings["moment"].dt.replace_time_zone(None).to_numpy()
    computed = [pl.Series(name, values) for name, values in request_features(inputs).items()]
    return window_features(readings, windows).hstack(computed)
