from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import orjson
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from penstock.serving.truth_policy import match, resolve

START = datetime(2024, 5, 1, tzinfo=UTC)
TIME = pl.Datetime("us", "UTC")


class Told(NamedTuple):
    """What was told of one prediction; times are days."""

    prediction_id: str
    truth: float
    known_at: int
    received_at: int


def day(number: int) -> datetime:
    return START + timedelta(days=number)


def resolved(told: Sequence[Told]) -> list[dict[str, Any]]:
    rows = pl.DataFrame(
        [(t.prediction_id, t.truth, day(t.known_at), day(t.received_at)) for t in told],
        schema={
            "prediction_id": pl.String,
            "truth": pl.Float64,
            "known_at": TIME,
            "received_at": TIME,
        },
        orient="row",
    )
    return resolve(rows.lazy()).sort("prediction_id").collect().to_dicts()


def by_hand(told: Sequence[Told]) -> list[dict[str, Any]]:
    """The rule once more, in plain loops."""
    answers = []
    for prediction_id in sorted({t.prediction_id for t in told}):
        first: dict[tuple[float, int], int] = {}
        for t in told:
            if t.prediction_id == prediction_id:
                same = (t.truth, t.known_at)
                first[same] = min(first.get(same, t.received_at), t.received_at)
        line = sorted((known, received, truth) for (truth, known), received in first.items())
        truth = line[-1][2]
        since = line[-1][0]
        for known, _, other in reversed(line):
            if other != truth:
                break
            since = known
        answers.append(
            {
                "prediction_id": prediction_id,
                "truth": truth,
                "known_at": day(since),
                "num_feedback": len(line),
                "is_contradicted": len({truth for truth, _ in first}) > 1,
            }
        )
    return answers


some = st.lists(
    st.builds(
        Told,
        st.sampled_from(["a-0", "b-0"]),
        st.sampled_from([0.0, 1.0, 2.5]),
        st.integers(0, 3),
        st.integers(0, 3),
    ),
    min_size=1,
    max_size=8,
)


class TestResolve:
    @given(some)
    @settings(max_examples=150, deadline=None)
    def test_it_is_the_rule(self, told):
        assert resolved(told) == by_hand(told)

    @given(some.flatmap(lambda told: st.tuples(st.just(told), st.permutations(told))))
    @settings(max_examples=60, deadline=None)
    def test_no_order_matters(self, both):
        told, shuffled = both
        assert resolved(shuffled) == resolved(told)

    @given(some.flatmap(lambda told: st.tuples(st.just(told), st.lists(st.sampled_from(told)))))
    @settings(max_examples=60, deadline=None)
    def test_what_comes_again_changes_nothing(self, both):
        told, again = both
        # Again, and later: as it is sent by who got no answer.
        late = [t._replace(received_at=t.received_at + 10) for t in again]
        assert resolved([*told, *late]) == resolved(told)

    @pytest.mark.parametrize(
        ("told", "truth", "known_at"),
        [
            ([(1, 1, 1), (0, 2, 2)], 0, 2),
            ([(1, 3, 3), (0, 2, 9)], 1, 3),
            ([(1, 2, 3), (0, 2, 4)], 0, 2),
            ([(0, 2, 3), (1, 2, 3)], 1, 2),
            ([(1, 1, 1), (1, 9, 9)], 1, 1),
            ([(1, 1, 1), (0, 5, 5), (1, 9, 9)], 1, 9),
            ([(1, 2, 3), (0, 2, 4), (1, 2, 5)], 0, 2),
        ],
        ids=[
            "the latest known counts",
            "though it was received earlier",
            "of those the latest received",
            "of those the larger",
            "told again it is not known later",
            "taken back and told again it is",
            "sent again it takes nothing back",
        ],
    )
    def test_in_words(self, told, truth, known_at):
        [answer] = resolved([Told("a-0", *t) for t in told])
        assert (answer["truth"], answer["known_at"]) == (truth, day(known_at))

    def test_of_nothing_comes_nothing(self):
        assert resolved([]) == []


def feedback(*rows: dict[str, Any]) -> pl.LazyFrame:
    columns = {
        "row": pl.UInt32, "prediction_id": pl.String, "entity": pl.String,
        "entity_names": pl.String, "event_time": TIME, "truth": pl.Float64, "known_at": TIME,
        "received_at": TIME,
    }  # fmt: skip
    told = {"truth": 1.0, "known_at": START, "received_at": START}
    return pl.LazyFrame(
        [told | row | {"row": number} for number, row in enumerate(rows)], schema=columns
    )


def entity(at: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "entity": orjson.dumps(values, option=orjson.OPT_SORT_KEYS).decode(),
        "entity_names": orjson.dumps(sorted(values)).decode(),
        "event_time": day(at),
    }


PREDICTIONS = pl.LazyFrame(
    [
        ("a-0", day(0), '{"rider":42,"city":"K\\"ö","is_new":true,"it\'s":"x"}'),
        ("a-1", day(0), '{"rider":43,"city":"Ulm","is_new":false,"it\'s":"x"}'),
        ("b-0", day(1), '{"rider":42,"city":"Ulm","is_new":true,"it\'s":"x"}'),
        ("c-0", day(0), '{"rider":42,"city":"Ulm","is_new":true,"it\'s":"x"}'),
        ("d-0", day(0), '{"bike":42}'),
    ],
    schema={"prediction_id": pl.String, "as_of": TIME, "request": pl.String},
    orient="row",
)


class TestMatch:
    def matched(self, *rows: dict[str, Any]) -> list[tuple[int, str]]:
        names = sorted({row["entity_names"] for row in rows if "entity_names" in row})
        found = match(feedback(*rows), PREDICTIONS, names).collect()
        return sorted(found.select("row", "prediction_id").rows())

    def test_an_id_is_its_own_prediction_and_an_unknown_one_nobodys(self):
        assert self.matched({"prediction_id": "a-0"}, {"prediction_id": "z-9"}) == [(0, "a-0")]

    def test_an_entity_is_every_prediction_of_it_at_exactly_that_time(self):
        assert self.matched(entity(rider=42)) == [(0, "a-0"), (0, "c-0")]
        assert self.matched(entity(at=1, rider=42)) == [(0, "b-0")]
        assert self.matched(entity(at=2, rider=42)) == []

    def test_each_named_field_must_be_equal(self):
        rows = [entity(rider=42, city='K"ö'), entity(is_new=False), entity(rider=4)]
        assert self.matched(*rows) == [(0, "a-0"), (1, "a-1")]

    def test_a_field_may_have_any_name(self):
        assert [at for _, at in self.matched(entity(**{"it's": "x", "rider": 43}))] == ["a-1"]

    def test_both_ways_stand_side_by_side(self):
        rows = [{"prediction_id": "a-0"}, entity(rider=42, city='K"ö')]
        assert self.matched(*rows) == [(0, "a-0"), (1, "a-0")]
