from datetime import UTC, datetime, timedelta
from typing import get_args

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.features import windows
from penstock.features.windows import Aggregation, Kind, Windows
from penstock.monitoring.skew_policy import (
    EntityEvents,
    RowsFound,
    WindowCell,
    equal,
    is_within_resolution,
    is_without_late_events,
    reasons_of_rows,
)

NONE = np.iinfo(np.int64).min
START = datetime(2024, 1, 1, tzinfo=UTC)
KINDS = get_args(Kind)

# Few values that come again, so that different events may give equal windows.
amounts = st.sampled_from([0.0, 1.0, 2.5, -3.0, 1e6, None])
worlds = st.lists(st.tuples(st.integers(0, 40), amounts), min_size=1, max_size=12)


def windows_of(kind: str, width: int, delay: int) -> Windows:
    return Windows(
        entity=("who",),
        event_time="at",
        widths={"w": timedelta(seconds=width)},
        aggregations=(Aggregation(kind=kind, column="v", name="f_{window}"),),
        delay=timedelta(seconds=delay),
    )


def newest_value(world: list, times: list[int], kind: str, width: int, delay: int) -> float:
    """The feature of the newest event, by the engine that builds feature tables."""
    events = pl.DataFrame(
        {
            "who": ["a"] * len(world),
            "at": [START + timedelta(seconds=t) for t in times],
            "v": pl.Series([v for _, v in world], dtype=pl.Float64),
        }
    )
    computed = windows.compute(events, windows_of(kind, width, delay))
    value = computed["f_w"][int(np.argmax(times))]
    return np.nan if value is None else float(value)


def events_of(world: list, maybe_unseen: list[bool] | None = None) -> EntityEvents:
    order = np.argsort([t for t, _ in world], kind="stable")
    values = [np.nan if v is None else v for _, v in world]
    return EntityEvents(
        time_us=np.array([t for t, _ in world])[order],
        values=np.array(values, dtype=float)[order],
        maybe_unseen=np.array(maybe_unseen or [False] * len(world))[order],
    )


def cell(kind: str, at: int, width: int, delay: int, served: float) -> WindowCell:
    return WindowCell(kind=kind, at_us=at, delay_us=delay, width_us=width, served=served)


class TestEqual:
    @pytest.mark.parametrize(
        ("served", "recomputed", "are_equal"),
        [
            (1.0, 1.0, True),
            (1e9, 1e9 * (1 + 9e-7), True),
            (1e9, 1e9 * (1 + 1.2e-6), False),
            (np.nan, np.nan, True),
            (np.nan, 0.0, False),
            (0.0, np.nan, False),
            (0.0, 1e-17, True),
            (0.0, 1e-6, False),
            (np.inf, np.inf, True),
            (np.inf, 1.0, False),
        ],
    )
    def test_it_is_within_a_millionth_of_the_larger(self, served, recomputed, are_equal):
        assert equal(np.array([served]), np.array([recomputed])).tolist() == [are_equal]


class TestReasonsOfRows:
    @pytest.mark.parametrize(
        ("served", "newest", "ttl", "reason"),
        [
            (100, 100, None, ""),
            (90, 100, None, "late"),
            (NONE, 100, None, "late"),
            (101, 100, None, "ahead"),
            (101, NONE, 10, "ahead"),
            (89, NONE, 10, "expired"),
            (90, NONE, 10, ""),
            (89, 95, 10, "late"),
            (NONE, NONE, 10, ""),
            # The tables lack the row that was used: nothing explains that.
            (95, 90, None, ""),
        ],
    )
    def test_as_of_100(self, served, newest, ttl, reason):
        found = RowsFound(
            as_of_us=np.array([100]),
            served_us=np.array([served]),
            newest_us=np.array([newest]),
            ttl_us=ttl,
        )
        assert reasons_of_rows(found).tolist() == [reason]


class TestResolution:
    @settings(max_examples=60, deadline=None)
    @given(
        world=worlds,
        kind=st.sampled_from(KINDS),
        width=st.integers(1, 20),
        delay=st.integers(0, 10),
        resolution=st.integers(1, 7),
    )
    def test_what_merged_entries_give_is_explained(self, world, kind, width, delay, resolution):
        # A merged entry's last value is that of its newest event.
        world = sorted(world, key=lambda event: event[0])
        times = [t for t, _ in world]
        newest_of_cell = {
            t // resolution: max(u for u in times if u // resolution == t // resolution)
            for t in times
        }
        merged = [newest_of_cell[t // resolution] for t in times]
        served = newest_value(world, merged, kind, width, delay)
        found = is_within_resolution(
            cell(kind, max(times), width, delay, served), events_of(world), resolution
        )
        assert found

    @settings(max_examples=60, deadline=None)
    @given(
        world=worlds,
        kind=st.sampled_from(KINDS),
        width=st.integers(1, 20),
        delay=st.integers(0, 10),
        resolution=st.integers(1, 7),
        served=st.sampled_from([0.0, 1.0, 2.0, 2.5, 0.5, 7.25, np.nan]),
    )
    def test_what_no_edges_within_it_give_is_not(
        self, world, kind, width, delay, resolution, served
    ):
        """Every pair of edges by itself, by the engine that builds feature tables."""
        at = max(t for t, _ in world)
        possible = []
        for back_first in range(resolution):
            for back_last in range(resolution if delay else 1):
                low, high = at - delay - width - back_first, at - delay - back_last
                inside = [(t, v) for t, v in world if low < t <= high]
                # As of the newest of them, in a window that holds all.
                possible.append(
                    newest_value(inside, [t for t, _ in inside], kind, 1000, 0)
                    if inside
                    else {"count": 0.0, "sum": 0.0, "share": 0.0}.get(kind, np.nan)
                )
        wanted = bool(equal(np.full(len(possible), served), np.array(possible)).any())
        found = is_within_resolution(
            cell(kind, at, width, delay, served), events_of(world), resolution
        )
        assert found == wanted

    def test_events_without_values_are_counted(self):
        events = EntityEvents(
            time_us=np.array([1, 5, 9]), values=None, maybe_unseen=np.zeros(3, dtype=bool)
        )
        for served, is_explained in ((0, False), (1, True), (2, True), (3, False)):
            found = is_within_resolution(cell("count", 9, 4, 0, served), events, 4)
            assert found == is_explained


class TestLateEvents:
    def test_a_window_without_one_of_them_is_explained(self):
        world = [(1, 1.0), (5, 10.0), (9, 2.0)]
        late = events_of(world, [False, True, False])
        assert is_without_late_events(cell("mean", 9, 20, 0, 1.5), late)
        assert not is_without_late_events(cell("mean", 9, 20, 0, 5.5), late)
        assert not is_without_late_events(cell("mean", 9, 20, 0, 1.5), events_of(world))

    def test_an_event_outside_of_the_window_explains_nothing(self):
        world = [(1, 1.0), (5, 10.0), (9, 2.0)]
        late = events_of(world, [True, False, False])
        assert not is_without_late_events(cell("count", 9, 5, 0, 1.0), late)

    def test_of_many_late_ones_the_last_may_be_left_out(self):
        world = [(t, float(t)) for t in range(30)]
        late = events_of(world, [True] * 30)
        assert is_without_late_events(cell("max", 29, 100, 0, 12.0), late)
