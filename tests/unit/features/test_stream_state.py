"""The laws of a stream's states: whatever the order and the batches, windows are those of batch."""

import itertools
import math
from datetime import UTC, datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from penstock.features import stream_entries, stream_state, windows
from penstock.features.stream_entries import Layout, partition_id
from penstock.features.stream_state import Arrivals, apply
from penstock.features.windows import Aggregation, Windows

START_US = int(datetime(2024, 1, 1, tzinfo=UTC).timestamp()) * 1_000_000
EVENTS = {
    "who": pl.Int64(),
    "at": pl.Datetime("us", "UTC"),
    "real": pl.Float64(),
    "whole": pl.Int64(),
    "flag": pl.Boolean(),
    "small": pl.Float32(),
}
DECLARED = Windows(
    entity=("who",),
    event_time="at",
    widths={"short": timedelta(microseconds=7), "long": timedelta(microseconds=40)},
    delay=timedelta(microseconds=5),
    aggregations=(
        Aggregation(kind="count", name="events_{window}"),
        Aggregation(kind="count", column="real", name="values_{window}"),
        Aggregation(kind="sum", column="real", name="sum_{window}"),
        Aggregation(kind="sum", column="whole", name="whole_sum_{window}"),
        Aggregation(kind="mean", column="real", name="mean_{window}"),
        Aggregation(kind="share", column="flag", name="share_{window}"),
        Aggregation(kind="min", column="small", name="min_{window}"),
        Aggregation(kind="max", column="whole", name="max_{window}"),
        Aggregation(kind="max", column="flag", name="any_{window}"),
        Aggregation(kind="std", column="real", name="std_{window}"),
        Aggregation(kind="last", column="real", name="last_{window}"),
    ),
)


def layout(resolution_us: int = 10, declared: Windows = DECLARED) -> Layout:
    return Layout(windows=declared, resolution=timedelta(microseconds=resolution_us), schema=EVENTS)


def frame(rows: list[tuple]) -> pl.DataFrame:
    """Events of (entity, microseconds after the start, real, whole, flag)."""
    return pl.DataFrame(
        {
            "who": [row[0] for row in rows],
            "at": pl.Series([START_US + row[1] for row in rows], dtype=pl.Int64).cast(EVENTS["at"]),
            "real": [row[2] for row in rows],
            "whole": [row[3] for row in rows],
            "flag": [row[4] for row in rows],
            "small": [row[2] for row in rows],
        },
        schema=EVENTS,
    )


def arrivals(events: pl.DataFrame, ranks: dict[int, int], first_offset: int = 0) -> Arrivals:
    offset = np.arange(first_offset, first_offset + events.height)
    return Arrivals(
        owner=np.array([ranks[who] for who in events["who"]], np.int64),
        time_us=events["at"].to_physical().to_numpy(),
        values={name: events[name] for name in EVENTS},
        partition=np.full(events.height, partition_id("log"), np.uint64),
        offset=offset,
        next_offset=offset + 1,
    )


def stream(events: pl.DataFrame, ends: list[int], how: Layout, max_exact: int = 1_000) -> dict:
    """Feed the events in batches that end so; give each entity's newest row."""
    states: dict[int, bytes] = {}
    rows = {}
    for start, end in itertools.pairwise([0, *ends, events.height]):
        batch = events.slice(start, end - start)
        entities = batch["who"].unique().to_list()
        if not entities:
            continue
        ranks = {who: rank for rank, who in enumerate(entities)}
        done = apply(
            how,
            [states.get(who) for who in entities],
            arrivals(batch, ranks, start),
            generation=1,
            floors={},
            max_exact=max_exact,
        )
        assert done.is_new.all()
        for who, rank in ranks.items():
            states[who] = done.states[rank]
            values = {name: series[rank] for name, series in done.features.items()}
            rows[who] = (int(done.newest_us[rank]), values)
    return rows


def batch_rows(events: pl.DataFrame, declared: Windows = DECLARED) -> dict:
    table = windows.compute(events, declared).sort("at", maintain_order=True)
    newest = table.unique("who", keep="last")
    return {
        row["who"]: (
            int(row["at"].timestamp()) * 1_000_000 + row["at"].microsecond,
            {name: row[name] for name in declared.feature_names()},
        )
        for row in newest.iter_rows(named=True)
    }


def is_close(one, other) -> bool:
    if one is None or other is None or isinstance(one, int | bool):
        return one == other
    return math.isclose(one, other, rel_tol=1e-9, abs_tol=1e-6)


def assert_same(found: dict, wanted: dict) -> None:
    assert found.keys() == wanted.keys()
    for who, (at, values) in wanted.items():
        assert found[who][0] == at
        for name, value in values.items():
            assert is_close(found[who][1][name], value), (who, name, found[who][1][name], value)


reals = st.none() | st.floats(-1e6, 1e6, width=32)
wholes = st.none() | st.integers(-(10**9), 10**9)
flags = st.none() | st.booleans()
rows = st.tuples(st.integers(0, 2), st.integers(0, 120), reals, wholes, flags)
logs = st.lists(rows, min_size=1, max_size=40)
cuts = st.lists(st.integers(0, 40), max_size=6)


class TestExactStates:
    @settings(max_examples=80, deadline=None)
    @given(logs, cuts)
    def test_any_order_in_any_batches_gives_the_newest_row_of_batch(self, log, cut):
        events = frame(log)
        ends = sorted(min(end, len(log)) for end in cut)
        assert_same(stream(events, ends, layout()), batch_rows(events))

    def test_many_events_of_an_ordinary_entity_are_exact(self):
        random = np.random.default_rng(3)
        log = [
            (0, int(at), float(value), int(value), bool(value > 50))
            for at, value in zip(
                random.integers(0, 10**6, 1_000), random.random(1_000) * 100, strict=True
            )
        ]
        widths = {"all": timedelta(seconds=2), "some": timedelta(seconds=0.3)}
        declared = Windows(
            entity=("who",), event_time="at", widths=widths, aggregations=DECLARED.aggregations
        )
        events = frame(log)
        found = stream(events, [100, 600], layout(declared=declared))
        assert_same(found, batch_rows(events, declared))


class TestMergedStates:
    @settings(max_examples=80, deadline=None)
    @given(logs, cuts, st.integers(1, 25), st.integers(0, 4))
    # A late event in a cell that was merged, when few entries are left.
    @example([(0, at, float(at), at, True) for at in (31, 37, 38, 41, 33)], [4], 10, 3)
    def test_edges_lie_back_by_less_than_the_resolution_and_never_forward(
        self, log, cut, resolution_us, max_exact
    ):
        events = frame(log)
        ends = sorted(min(end, len(log)) for end in cut)
        found = stream(events, ends, layout(resolution_us), max_exact=max_exact)
        for who, (at, values) in found.items():
            own = [(START_US + row[1], *row[2:]) for row in log if row[0] == who]
            assert at == max(time for time, *_ in own)
            for label, width in DECLARED.widths.items():
                served = {name: values[name] for name in values if name.endswith(f"_{label}")}
                end = at - 5
                start = end - width // timedelta(microseconds=1)
                # An edge lies between two microseconds, so each stands for a whole one more back.
                assert any(
                    same(served, own, label, start - back, end - end_back)
                    for back in range(resolution_us + 1)
                    for end_back in range(resolution_us + 1)
                ), (who, label, served)

    def test_an_entity_has_no_more_entries_than_cells(self):
        log = [(0, at, 1.0, 1, True) for at in range(120)]
        how = layout(resolution_us=20)
        done = apply(
            how, [None], arrivals(frame(log), {0: 0}), generation=1, floors={}, max_exact=3
        )
        entries = (len(done.states[0]) - 12 - 16) // how.dtype.itemsize
        assert entries <= how.horizon_us // 20 + 2


def same(served: dict, own: list[tuple], label: str, start: int, end: int) -> bool:
    inside = [row for row in own if start < row[0] <= end]
    if served[f"events_{label}"] != len(inside):
        return False
    reals = [row[1] for row in inside if row[1] is not None]
    whole = [row[2] for row in inside if row[2] is not None]
    marked = [row[3] for row in inside if row[3] is not None]
    wanted = {
        "values": len(reals),
        "sum": math.fsum(reals),
        "whole_sum": sum(whole),
        "mean": math.fsum(reals) / len(reals) if reals else None,
        "share": sum(marked) / len(marked) if marked else 0.0,
        "min": min(reals, default=None),
        "max": max(whole, default=None),
        "any": max(marked, default=None),
        "std": float(np.std(np.array(reals, np.longdouble), ddof=1)) if len(reals) > 1 else None,
    }
    valued = [row for row in inside if row[1] is not None]
    # Of values at the same time a merged one may be either.
    last = {row[1] for row in valued if row[0] == max(row[0] for row in valued)} or {None}
    return any(is_close(served[f"last_{label}"], value) for value in last) and all(
        is_close(served[f"{name}_{label}"], value) for name, value in wanted.items()
    )


def test_every_kind_of_aggregation_is_known():
    assert stream_entries._NEEDS.keys() == set(windows._KINDS)


class TestPositions:
    def test_an_event_that_was_applied_before_is_not_counted_again(self):
        log = frame([(0, 1, 1.0, 1, True), (0, 20, 2.0, 2, True), (1, 30, 3.0, 3, True)])
        ranks = {0: 0, 1: 1}
        once = apply(layout(), [None, None], arrivals(log, ranks), generation=1, floors={})
        twice = apply(layout(), once.states, arrivals(log, ranks), generation=1, floors={})
        assert once.is_new.all()
        assert not twice.is_new.any()
        assert twice.states == once.states
        assert {n: s.to_list() for n, s in twice.features.items()} == {
            n: s.to_list() for n, s in once.features.items()
        }

    def test_without_the_positions_it_would_be_counted_twice(self, monkeypatch):
        def nothing(_stored, given):
            return np.zeros(len(given.owner), np.bool_)

        monkeypatch.setattr(stream_state, "already_applied", nothing)
        log = frame([(0, 1, 1.0, 1, True), (0, 20, 2.0, 2, True)])
        once = apply(layout(), [None], arrivals(log, {0: 0}), generation=1, floors={})
        twice = apply(layout(), once.states, arrivals(log, {0: 0}), generation=1, floors={})
        assert twice.features["events_long"].to_list() == [2]

    def test_what_the_table_has_need_not_be_remembered(self):
        log = frame([(0, 1, 1.0, 1, True)])
        partition = partition_id("log")
        some = {"generation": 1, "floors": {partition: 0}}
        all_of_it = {"generation": 1, "floors": {partition: 1}}
        kept = apply(layout(), [None], arrivals(log, {0: 0}), **some)
        dropped = apply(layout(), [None], arrivals(log, {0: 0}), **all_of_it)
        assert len(kept.states[0]) - len(dropped.states[0]) == 16

    @settings(max_examples=50, deadline=None)
    @given(logs, st.data())
    def test_a_log_that_is_read_again_from_any_place_changes_nothing(self, log, data):
        events = frame(log)
        ranks = {who: rank for rank, who in enumerate(events["who"].unique().to_list())}
        stop = data.draw(st.integers(1, len(log)))
        again = data.draw(st.integers(0, stop))
        states = [None] * len(ranks)
        for start, end in ((0, stop), (again, len(log))):
            part = events.slice(start, end - start)
            done = apply(layout(), states, arrivals(part, ranks, start), generation=1, floors={})
            states = done.states
        found = {
            who: (
                int(done.newest_us[rank]),
                {name: series[rank] for name, series in done.features.items()},
            )
            for who, rank in ranks.items()
        }
        assert_same(found, batch_rows(events))

    def test_a_state_of_another_generation_is_none(self):
        log = frame([(0, 1, 1.0, 1, True)])
        first = apply(layout(), [None], arrivals(log, {0: 0}), generation=1, floors={})
        second = apply(layout(), first.states, arrivals(log, {0: 0}), generation=2, floors={})
        assert second.is_new.all()


@pytest.mark.parametrize("broken", [b"", b"x" * 7, b"\x01\0\0\0\xff\0\0\0\1\0\0\0", b"\0" * 12])
def test_bytes_that_are_no_state_are_refused(broken):
    from penstock.errors import IntegrityError

    log = frame([(0, 1, 1.0, 1, True)])
    with pytest.raises(IntegrityError, match="no state"):
        apply(layout(), [broken], arrivals(log, {0: 0}), generation=1, floors={})
