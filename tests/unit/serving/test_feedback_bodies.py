import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from penstock.errors import RequestError
from penstock.registry.package import RequestField
from penstock.serving.feedback_bodies import microseconds, read_feedback
from penstock.serving.feedback_target import FeedbackTarget

NOW = datetime(2024, 5, 1, 12, tzinfo=UTC)
BINARY = FeedbackTarget(
    model="spills",
    use_case="dam",
    entity_fields=(
        RequestField(name="STATION", dtype="int64"),
        RequestField(name="CITY", dtype="string"),
        RequestField(name="IS_NEW", dtype="bool"),
    ),
    is_binary=True,
)
LEVEL = BINARY.model_copy(update={"is_binary": False})
BY_ID = {"prediction_id": "a-0", "truth": 1}
BY_ENTITY = {"entity": {"STATION": 7}, "event_time": "2024-04-01T00:00:00Z", "truth": 0}


def read(body: Any, target: FeedbackTarget = BINARY) -> list[dict[str, Any]]:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return read_feedback(raw, lambda _: target, now=NOW).rows


def read_one(target: FeedbackTarget = BINARY, **item: Any) -> dict[str, Any]:
    [row] = read({"model": "spills", "feedback": [item]}, target)
    return row


class TestTaken:
    def test_by_prediction_id(self):
        assert read_one(**BY_ID) == {"prediction_id": "a-0", "truth": 1.0, "known_at_us": None}

    def test_by_entity_and_time_in_one_spelling(self):
        entity = {"IS_NEW": True, "STATION": 7, "CITY": "Köln"}
        row = read_one(**BY_ENTITY | {"entity": entity, "event_time": "2024-04-01T02:00:00+02:00"})
        assert row == {
            "entity": '{"CITY":"Köln","IS_NEW":true,"STATION":7}',
            "entity_names": '["CITY","IS_NEW","STATION"]',
            "event_time_us": microseconds(datetime(2024, 4, 1, tzinfo=UTC)),
            "truth": 0.0,
            "known_at_us": None,
        }

    def test_when_it_was_known_may_be_told(self):
        row = read_one(**BY_ID, known_at="2024-05-01T12:04:59.000001Z")
        told = NOW + timedelta(minutes=4, seconds=59, microseconds=1)
        assert row["known_at_us"] == microseconds(told)

    def test_where_the_label_is_a_number_the_truth_is_any(self):
        assert read_one(LEVEL, **BY_ID | {"truth": -3.5})["truth"] == -3.5


class TestRefused:
    @pytest.mark.parametrize(
        ("body", "code", "path"),
        [
            (b"{", "unreadable", "$"),
            ([], "wrong_type", "$"),
            ({"model": "spills"}, "missing_field", "$"),
            ({"model": "spills", "feedback": [], "more": 1}, "unknown_key", "$"),
            ({"model": 7, "feedback": []}, "wrong_type", "$.model"),
            ({"model": "spills", "feedback": {}}, "wrong_type", "$.feedback"),
            ({"model": "spills", "feedback": []}, "no_rows", "$.feedback"),
            (b'{"model":"spills","model":"spills","feedback":[]}', "duplicate_key", "$"),
        ],
    )
    def test_a_body_of_another_form(self, body, code, path):
        with pytest.raises(RequestError) as refused:
            read(body)
        assert (refused.value.code, refused.value.path) == (code, path)

    @pytest.mark.parametrize(
        ("item", "code", "path"),
        [
            (7, "wrong_type", ""),
            ({"truth": 1}, "missing_field", ""),
            ({"prediction_id": "a-0"}, "missing_field", ""),
            (BY_ID | BY_ENTITY, "unknown_key", ""),
            (BY_ID | {"note": "x"}, "unknown_key", ""),
            ({"entity": {"STATION": 7}, "truth": 1}, "missing_field", ""),
            (BY_ID | {"prediction_id": ""}, "out_of_range", ".prediction_id"),
            (BY_ID | {"prediction_id": "ä" * 101}, "out_of_range", ".prediction_id"),
            (BY_ID | {"prediction_id": "\ud800"}, "wrong_type", ".prediction_id"),
            (BY_ID | {"truth": None}, "wrong_type", ".truth"),
            (BY_ID | {"truth": "1"}, "wrong_type", ".truth"),
            (BY_ID | {"truth": True}, "wrong_type", ".truth"),
            (BY_ID | {"truth": 2}, "out_of_range", ".truth"),
            (BY_ID | {"truth": float("nan")}, "not_finite", ".truth"),
            (BY_ID | {"known_at": "yesterday"}, "bad_timestamp", ".known_at"),
            (BY_ID | {"known_at": "2024-05-01T12:05:01Z"}, "out_of_range", ".known_at"),
            (BY_ENTITY | {"event_time": "2024-02-30"}, "bad_timestamp", ".event_time"),
            (BY_ENTITY | {"entity": {}}, "missing_field", ".entity"),
            (BY_ENTITY | {"entity": [7]}, "wrong_type", ".entity"),
            (BY_ENTITY | {"entity": {"PLANT": 7}}, "unknown_key", ".entity"),
            (BY_ENTITY | {"entity": {"STATION": "7"}}, "wrong_type", ".entity.STATION"),
            (BY_ENTITY | {"entity": {"STATION": 7.0}}, "wrong_type", ".entity.STATION"),
            (BY_ENTITY | {"entity": {"STATION": None}}, "wrong_type", ".entity.STATION"),
            (BY_ENTITY | {"entity": {"CITY": "x" * 5_000}}, "too_large", ".entity"),
        ],
    )
    def test_a_row_that_is_not_right_with_its_place(self, item, code, path):
        with pytest.raises(RequestError) as refused:
            read({"model": "spills", "feedback": [BY_ID, item]})
        assert (refused.value.code, refused.value.path) == (code, f"$.feedback[1]{path}")
        assert refused.value.message.isascii()
