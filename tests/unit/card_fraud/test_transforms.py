from datetime import UTC, datetime, timedelta, timezone

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from card_fraud.transforms import payment_features

times = st.datetimes(min_value=datetime(1950, 1, 1), max_value=datetime(2200, 1, 1))


class TestPaymentFeatures:
    @given(st.lists(times, min_size=1, max_size=20))
    def test_the_flags_are_what_the_calendar_says(self, moments):
        inputs = {
            "TX_DATETIME": np.array(moments, dtype="datetime64[us]"),
            "TX_AMOUNT": np.ones(len(moments)),
        }
        features = payment_features(inputs)
        assert features["TX_DURING_WEEKEND"].tolist() == [int(t.weekday() >= 5) for t in moments]
        assert features["TX_DURING_NIGHT"].tolist() == [int(t.hour <= 6) for t in moments]

    @given(st.lists(times, min_size=1, max_size=5))
    def test_lists_as_feast_passes_them_give_the_same_values_as_arrays(self, moments):
        amounts = [1.5] * len(moments)
        arrays = payment_features(
            {"TX_DATETIME": np.array(moments, dtype="datetime64[us]"), "TX_AMOUNT": amounts}
        )
        aware = [t.replace(tzinfo=UTC) for t in moments]
        lists = payment_features({"TX_DATETIME": aware, "TX_AMOUNT": amounts})
        assert {name: values.tolist() for name, values in arrays.items()} == lists

    def test_a_time_of_another_zone_is_read_in_utc(self):
        # 05:00 at +09:00 is 20:00 UTC of the day before.
        there = datetime(2024, 3, 5, 5, tzinfo=timezone(timedelta(hours=9)))
        assert payment_features({"TX_DATETIME": [there], "TX_AMOUNT": [1.0]}) == {
            "TX_AMOUNT": [1.0],
            "TX_DURING_WEEKEND": [0],
            "TX_DURING_NIGHT": [0],
        }

    @pytest.mark.parametrize(("hour", "night"), [(0, 1), (6, 1), (7, 0), (23, 0)])
    def test_the_night_ends_with_the_hour_of_six(self, hour, night):
        at = np.array([datetime(2024, 3, 5, hour, 59)], dtype="datetime64[us]")
        assert payment_features({"TX_DATETIME": at, "TX_AMOUNT": np.ones(1)})[
            "TX_DURING_NIGHT"
        ].tolist() == [night]
