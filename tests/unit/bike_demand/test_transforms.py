from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bike_demand.transforms import STATIONS, WEATHER, request_features, station_feature

times = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1))


def inputs(moments, station="pomme"):
    return {
        "moment": moments,
        "station": [station] * len(moments),
        **{name: [float(n)] * len(moments) for n, name in enumerate(WEATHER)},
    }


def as_arrays(given):
    arrays = {name: np.asarray(values) for name, values in given.items() if name != "moment"}
    return {"moment": np.array(given["moment"], dtype="datetime64[us]"), **arrays}


class TestRequestFeatures:
    @given(st.lists(times, min_size=1, max_size=20))
    def test_hour_and_weekday_are_what_the_calendar_says(self, moments):
        features = request_features(as_arrays(inputs(moments)))
        midnight = [t.replace(hour=0, minute=0, second=0, microsecond=0) for t in moments]
        hours = [(t - day) / timedelta(hours=1) for t, day in zip(moments, midnight, strict=True)]
        assert features["hour"].tolist() == pytest.approx(hours, abs=1e-6)
        assert features["weekday"].tolist() == [t.weekday() for t in moments]
        assert features["is_weekend"].tolist() == [int(t.weekday() >= 5) for t in moments]

    @given(st.lists(times, min_size=1, max_size=5))
    def test_lists_as_feast_passes_them_give_the_same_values_as_arrays(self, moments):
        arrays = request_features(as_arrays(inputs(moments)))
        lists = request_features(inputs([t.replace(tzinfo=UTC) for t in moments]))
        assert {name: values.tolist() for name, values in arrays.items()} == lists

    def test_a_time_of_another_zone_is_read_in_utc(self):
        there = datetime(2024, 3, 5, 5, tzinfo=timezone(timedelta(hours=9)))
        features = request_features(inputs([there]))
        assert (features["hour"], features["weekday"]) == ([20.0], [0])

    @pytest.mark.parametrize("station", [*STATIONS, "one-that-was-built-later"])
    def test_a_station_has_its_own_flag_and_an_unknown_one_has_none(self, station):
        features = request_features(inputs([datetime(2024, 3, 5)], station))
        raised = [name for name in STATIONS if features[station_feature(name)] == [1]]
        assert raised == [name for name in STATIONS if name == station]
