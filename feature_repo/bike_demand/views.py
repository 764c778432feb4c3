"""What can be looked up for a station at a moment: its own past, and the request itself."""

from inspect import getsource

from feast import FeatureView, Field, OnDemandFeatureView, RequestSource
from feast.transformation.python_transformation import PythonTransformation
from feast.types import Float64, Int64, String, UnixTimestamp

from bike_demand.entities import station
from bike_demand.feature_tables import day_before, newest, recent, week_before
from bike_demand.transforms import STATIONS, WEATHER, request_features, station_feature
from penstock.features.declarations import FeatureTable
from penstock.features.delta_source import DeltaSource


def window_view(table: FeatureTable) -> FeatureView:
    """A view of every feature of the table; a mean has fractions, a reading has none."""
    windows = table.windows
    features = [
        Field(name=name, dtype=Float64 if "_mean_" in name else Int64)
        for name in windows.feature_names()
    ]
    return FeatureView(
        name=table.name.replace(".", "_"),
        entities=[station],
        # Older than its widest window, moved by its delay, a row counts no reading any more.
        ttl=max(windows.widths.values()) + windows.delay,
        schema=[Field(name="station", dtype=String), *features],
        source=DeltaSource(table=table.name, timestamp_field=windows.event_time),
    )


newest_view = window_view(newest)
recent_view = window_view(recent)
day_before_view = window_view(day_before)
week_before_view = window_view(week_before)

request = RequestSource(
    name="bike_demand_request",
    timestamp_field="moment",
    schema=[
        Field(name="moment", dtype=UnixTimestamp),
        Field(name="station", dtype=String),
        *(Field(name=name, dtype=Float64) for name in WEATHER),
    ],
)
request_view = OnDemandFeatureView(
    name="bike_demand_request_features",
    mode="python",
    sources=[request],
    schema=[
        Field(name="hour", dtype=Float64),
        Field(name="weekday", dtype=Int64),
        Field(name="is_weekend", dtype=Int64),
        *(Field(name=f"{name}_now", dtype=Float64) for name in WEATHER),
        *(Field(name=station_feature(name), dtype=Int64) for name in STATIONS),
    ],
    feature_transformation=PythonTransformation(
        udf=request_features, udf_string=getsource(request_features)
    ),
)
