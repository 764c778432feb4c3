"""What a station's own past says, as far as it is known: nothing newer than LABEL_DELAY."""

from datetime import timedelta

from penstock.features.declarations import FeatureTable
from penstock.features.windows import Aggregation, Kind, Windows

# A reading becomes known half an hour after it was taken.
LABEL_DELAY = timedelta(minutes=30)
HOUR = timedelta(hours=1)
DAY = timedelta(days=1)
WEEK = timedelta(days=7)


def station_windows(
    name: str, *kinds: Kind, widths: dict[str, timedelta], delay: timedelta
) -> FeatureTable:
    """Windows over a station's readings, each feature named `bikes_<kind>_<window>`."""
    return FeatureTable(
        name=f"bike_demand.{name}",
        source="bike_demand.readings",
        windows=Windows(
            entity=("station",),
            event_time="moment",
            widths=widths,
            delay=delay,
            aggregations=tuple(
                Aggregation(kind=kind, column="bikes", name=f"bikes_{kind}_{{window}}")
                for kind in kinds
            ),
        ),
    )


newest = station_windows("newest", "last", widths={"day": DAY}, delay=LABEL_DELAY)
recent = station_windows(
    "recent",
    "mean",
    "min",
    "max",
    widths={"hour": HOUR, "3_hours": 3 * HOUR, "day": DAY, "week": WEEK},
    delay=LABEL_DELAY,
)
# The hour around the same time of another day: half before it, half after.
day_before = station_windows(
    "day_before", "mean", widths={"same_time_yesterday": HOUR}, delay=DAY - HOUR / 2
)
week_before = station_windows(
    "week_before", "mean", widths={"same_time_last_week": HOUR}, delay=WEEK - HOUR / 2
)
