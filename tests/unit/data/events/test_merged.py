import time
from collections.abc import Callable, Mapping

import pytest

from penstock.data.events import Event
from penstock.data.events.merged import MergedSource


class Log:
    """A source in memory."""

    def __init__(self, name: str, num_events: int = 0, *, lag: int | None = 0):
        self.name = name
        self.values = [b"%d" % i for i in range(num_events)]
        self.position = 0
        self.given_lag = lag
        self.is_open = False
        self.committed: Mapping[str, int] = {}

    def open(self, positions: Mapping[str, int], before_revoke: Callable[[], None]) -> None:
        self.position = positions.get(self.name, 0)
        self.is_open = True

    def poll(self, max_events: int, wait_s: float) -> list[Event]:
        assert max_events > 0
        time.sleep(wait_s)
        start, self.position = self.position, min(self.position + max_events, len(self.values))
        return [Event(self.name, i, i + 1, self.values[i]) for i in range(start, self.position)]

    def commit(self, positions: Mapping[str, int]) -> None:
        self.committed = positions

    def lag(self) -> int | None:
        return self.given_lag

    def close(self) -> None:
        self.is_open = False


def opened(*logs: Log, positions: dict[str, int] | None = None) -> MergedSource:
    source = MergedSource(logs)
    source.open(positions or {}, lambda: None)
    return source


class TestMergedSource:
    def test_each_starts_at_its_own_position(self):
        source = opened(Log("a", 3), Log("b", 3), positions={"a": 2, "b": 1})
        assert [(e.partition, e.offset) for e in source.poll(10, 0)] == [
            ("a", 2),
            ("b", 1),
            ("b", 2),
        ]

    def test_a_busy_one_leaves_room_for_the_others(self):
        source = opened(Log("a", 1_000), Log("b", 3))
        events = source.poll(10, 0)
        assert {event.partition for event in events} == {"a", "b"}

    @pytest.mark.parametrize("max_events", [1, 2, 3, 7])
    def test_no_more_than_asked_for_and_each_once(self, max_events: int):
        source = opened(Log("a", 20), Log("b", 5), Log("c", 11))
        seen = []
        while events := source.poll(max_events, 0):
            assert len(events) <= max_events
            seen += [(event.partition, event.offset) for event in events]
        assert sorted(seen) == sorted(
            [("a", i) for i in range(20)] + [("b", i) for i in range(5)]
            + [("c", i) for i in range(11)]
        )  # fmt: skip

    def test_without_events_it_waits_as_long_as_it_may(self):
        began_s = time.monotonic()
        assert opened(Log("a"), Log("b")).poll(10, 0.1) == []
        assert 0.1 <= time.monotonic() - began_s < 0.5

    def test_all_hear_of_a_commit_and_are_closed(self):
        logs = (Log("a"), Log("b"))
        source = opened(*logs)
        source.commit({"a": 1})
        source.close()
        assert [log.committed for log in logs] == [{"a": 1}, {"a": 1}]
        assert not any(log.is_open for log in logs)

    def test_lag_is_the_sum_or_unknown(self):
        assert opened(Log("a", lag=2), Log("b", lag=3)).lag() == 5
        assert opened(Log("a", lag=2), Log("b", lag=None)).lag() is None

    def test_one_that_cannot_be_opened_leaves_none_open(self):
        good = Log("a")

        class Broken(Log):
            def open(self, positions, before_revoke):
                raise ValueError("no")

        with pytest.raises(ValueError, match="no"):
            opened(good, Broken("b"))
        assert not good.is_open
