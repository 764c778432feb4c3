"""No feature sees a reading before it is known, half an hour after it was taken."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from bike_demand.feature_tables import LABEL_DELAY
from bikes import DECLARED, window_features

START = datetime(2016, 5, 1, tzinfo=UTC)


@pytest.fixture(scope="module")
def readings():
    """Three weeks of two stations, a reading every ten minutes or so."""
    random = np.random.default_rng(5)
    parts = []
    for station in ("pomme", "place-esquirol"):
        minutes = np.cumsum(random.integers(1, 20, 3_000))
        moments = [START + timedelta(minutes=int(m)) for m in minutes]
        parts.append(
            pl.DataFrame(
                {"station": station, "moment": moments, "bikes": random.integers(0, 30, 3_000)}
            )
        )
    return pl.concat(parts).with_columns(pl.col("moment").dt.cast_time_unit("us")).sort("moment")


def changed_by_what_was_not_known(readings, windows) -> int:
    """How many features of a moment change when everything not yet known then does."""
    before = window_features(readings, windows)
    num_changed = 0
    for row in np.random.default_rng(0).integers(2_000, readings.height, 12):
        moment = readings["moment"][int(row)]
        unknown = pl.col("moment") > moment - LABEL_DELAY
        bikes = pl.when(unknown).then(pl.col("bikes") + 100).otherwise(pl.col("bikes"))
        after = window_features(readings.with_columns(bikes=bikes), windows)
        num_changed += sum(
            a != b for a, b in zip(before.row(int(row)), after.row(int(row)), strict=True)
        )
    return num_changed


def test_no_feature_changes_with_a_reading_that_is_not_known_yet(readings):
    assert changed_by_what_was_not_known(readings, DECLARED) == 0


@pytest.mark.parametrize("number", range(len(DECLARED)))
def test_a_table_whose_delay_was_dropped_would_not_pass(readings, number):
    early = replace(DECLARED[number], delay=timedelta(0))
    assert changed_by_what_was_not_known(readings, [early]) > 0


def test_the_newest_known_reading_is_half_an_hour_old_at_the_least(readings):
    (last,) = DECLARED[0].feature_names()
    found = readings.with_columns(window_features(readings)[last])
    for station, moment, _, value in found.sample(50, seed=1).iter_rows():
        known = found.filter(
            (pl.col("station") == station) & (pl.col("moment") <= moment - LABEL_DELAY)
        )
        assert value == (known["bikes"][-1] if known.height else None)
