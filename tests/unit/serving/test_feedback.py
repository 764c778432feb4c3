import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from feedback import AS_OF, MODEL, about, kept, post, registered
from penstock.data.events.push_log import PushLog
from penstock.serving import http
from penstock.serving.feedback import FeedbackIntake
from penstock.serving.feedback_collection import collect_feedback
from penstock.settings import Settings

USE_CASE = "card_fraud"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return registered(tmp_path)


@pytest.fixture
def intake(settings: Settings) -> FeedbackIntake:
    return FeedbackIntake(settings)


def answered(answer: http.Answer) -> tuple[int, Any]:
    document = json.loads(answer.body)
    return answer.status, document.get("code", document)


class TestTaken:
    def test_what_was_answered_comes_into_the_table(self, settings, intake):
        entity = {"CUSTOMER_ID": 42, "CITY": 'K"ö'}
        body = about("a-0")
        body["feedback"] += [
            {"entity": entity, "event_time": AS_OF.isoformat(), "truth": 0,
             "known_at": "2024-05-03T00:00:00Z"}
        ]  # fmt: skip
        [answer] = post(intake, body, key_id="5da1")
        assert answered(answer) == (202, {"model": MODEL, "accepted": 2, "sequence": 1})
        assert collect_feedback(settings, USE_CASE) == 2
        by_entity, by_id = kept(settings)
        received_at = by_id["received_at"]
        assert timedelta(0) <= datetime.now(UTC) - received_at < timedelta(minutes=5)
        nothing = dict.fromkeys(("prediction_id", "entity", "entity_names", "event_time"))
        told = {"received_at": received_at, "source": "http:5da1"}
        assert by_id == {
            **nothing, **told, "prediction_id": "a-0", "truth": 1.0, "known_at": received_at,
        }  # fmt: skip
        assert by_entity == {
            **nothing,
            **told,
            "entity": '{"CITY":"K\\"ö","CUSTOMER_ID":42}',
            "entity_names": '["CITY","CUSTOMER_ID"]',
            "event_time": AS_OF,
            "truth": 0.0,
            "known_at": datetime(2024, 5, 3, tzinfo=UTC),
        }

    def test_the_same_body_is_kept_once_also_after_it_was_collected(self, settings, intake):
        first = post(intake, about("a-0", "a-1"))
        assert collect_feedback(settings, USE_CASE) == 2
        assert post(intake, about("a-0", "a-1")) == first
        assert collect_feedback(settings, USE_CASE) == 0
        assert [row["prediction_id"] for row in kept(settings)] == ["a-0", "a-1"]
        assert kept(settings)[0]["source"] == "http"

    def test_bodies_at_once_are_all_kept(self, settings, intake):
        answers = post(intake, *(about(f"a-{n}") for n in range(20)))
        assert {answer.status for answer in answers} == {202}
        assert collect_feedback(settings, USE_CASE) == 20

    def test_a_version_that_is_registered_meanwhile_is_known(self, settings, intake, monkeypatch):
        post(intake, about("a-0"))
        registered(settings.storage_path, number=2)
        assert post(intake, about("a-1"))[0].status == 202
        assert {path.name for path in intake._targets} == {"1", "2"}


class TestRefused:
    def test_of_a_body_with_one_bad_row_nothing_is_kept(self, settings, intake):
        body = about("a-0", "a-1")
        body["feedback"][1]["truth"] = "1"
        [answer] = post(intake, body)
        assert answer.status == 422
        assert json.loads(answer.body)["path"] == "$.feedback[1].truth"
        assert collect_feedback(settings, USE_CASE) == 0

    @pytest.mark.parametrize("model", ["nobody", "../models/card_fraud", "\x00"])
    def test_a_model_that_nobody_registered_is_404(self, intake, model):
        [answer] = post(intake, about("a-0") | {"model": model})
        assert answered(answer) == (404, "unknown_model")

    def test_a_package_that_was_changed_is_503(self, settings, intake):
        (settings.models_path / MODEL / "1" / "model.onnx").write_bytes(b"")
        assert answered(post(intake, about("a-0"))[0]) == (503, "model_unreadable")

    def test_another_method_type_or_size_is_refused_as_everywhere(self, settings, intake):
        assert post(intake, b"", method="GET")[0].status == 405
        text = ((b"content-type", b"text/csv"),)
        assert answered(post(intake, b"", headers=text)[0]) == (415, "wrong_content_type")
        large = b" " * (settings.serving.max_body_bytes + 1)
        assert answered(post(intake, large)[0]) == (413, "too_large")

    def test_a_full_log_is_503_and_takes_more_when_it_was_collected(self, settings, intake):
        intake._log = PushLog(settings.push_log_url, max_waiting_events=2)
        assert post(intake, about("a-0", "a-1"))[0].status == 202
        [answer] = post(intake, about("a-2"))
        assert answered(answer) == (503, "full")
        assert "penstock feedback show" in json.loads(answer.body)["message"]
        collect_feedback(settings, USE_CASE)
        assert post(intake, about("a-2"))[0].status == 202
