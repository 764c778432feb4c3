import orjson
import pytest

from data_room import SPILLS
from penstock.data.checks import ROW
from penstock.data.events import Event
from penstock.features.stream_judge import Judge
from penstock.features.stream_online import NEXT
from penstock.features.stream_table import SOURCE, KeyMemory

GOOD = {"id": 1, "at": "2024-05-01T12:00:00Z", "litres": 1.5, "gate": "north", "open": True}
LATEST_US = 2**60


def event(offset: int, partition: str = "log", **changes: object) -> Event:
    return Event(partition, offset, offset + 1, orjson.dumps(GOOD | {"id": offset} | changes))


@pytest.fixture
def keys():
    return KeyMemory(SPILLS)


def rules(judged) -> list[tuple]:
    return judged.bad.select("source", "row", "column", "rule").rows()


class TestJudge:
    def test_kept_events_have_their_place_and_bad_ones_too(self, keys):
        judged = Judge(SPILLS, keys).judge(
            [event(5), event(6, gate="east"), event(7, id=5), event(9, "other")],
            latest_us=LATEST_US,
        )
        assert judged.kept.select(SOURCE, ROW, NEXT).rows() == [("log", 5, 6), ("other", 9, 10)]
        assert sorted(rules(judged)) == [
            ("log", 6, "gate", "isin(['north', 'south'])"),
            ("log", 7, "id", "unique"),
        ]
        assert len(judged.rejected) == 2
        assert not judged.is_other

    def test_what_was_set_aside_is_set_aside_again_whatever_speaks_for_it_now(self, keys):
        judge = Judge(SPILLS, keys, rejected=[("log", 5, "at", "clock"), ("log", 6, "*", "json")])
        judged = judge.judge([event(5), event(6), event(7)], latest_us=LATEST_US)
        assert judged.kept[ROW].to_list() == [7]
        assert rules(judged) == [("log", 5, "at", "clock"), ("log", 6, "*", "json")]
        assert not judged.rejected
        # It claimed no key either.
        assert judge.judge([event(8, id=5)], latest_us=LATEST_US).kept.height == 1

    def test_what_may_have_been_counted_and_is_set_aside_now_is_told(self, keys):
        judge = Judge(SPILLS, keys, reached={"log": 6})
        assert not judge.judge([event(6, gate="east")], latest_us=LATEST_US).is_other
        assert judge.judge([event(5, gate="east")], latest_us=LATEST_US).is_other

    def test_what_the_table_has_is_forgotten(self, keys):
        judge = Judge(SPILLS, keys)
        judge.judge([event(5, gate="east"), event(8, gate="east")], latest_us=LATEST_US)
        judge.forget({"log": 7})
        assert [rejection[:2] for rejection in judge.rejections()] == [("log", 8)]

    def test_nothing_is_judged_without_harm(self, keys):
        judged = Judge(SPILLS, keys).judge([], latest_us=LATEST_US)
        assert (judged.kept.height, judged.bad.height) == (0, 0)
