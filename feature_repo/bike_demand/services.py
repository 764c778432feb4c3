"""The features that one model version is trained on and served with."""

from feast import FeatureService

from bike_demand.views import (
    day_before_view,
    newest_view,
    recent_view,
    request_view,
    week_before_view,
)

bike_demand_v1 = FeatureService(
    name="bike_demand_v1",
    features=[newest_view, recent_view, day_before_view, week_before_view, request_view],
    description="A station's known past, the calendar and the weather.",
)
