import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from payments import TRANSACTIONS, make_payments, settings_in
from penstock.data.events.push_log import PushLog
from penstock.serving import events, http
from penstock.serving.events import EventIntake, table_of
from penstock.settings import Settings

JSON = (b"content-type", b"application/json")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path)


@pytest.fixture
def intake(settings: Settings) -> EventIntake:
    return EventIntake(settings)


def payments(first: int, num: int) -> list[dict[str, Any]]:
    rows = make_payments(50)[first : first + num]
    return json.loads(rows.write_json().replace("+00:00", "Z"))


def send(
    intake: EventIntake,
    *bodies: Any,
    table: str = TRANSACTIONS,
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,),
    method: str = "POST",
) -> list[http.Answer]:
    """Send bodies at the same time, as a server's clients do."""

    async def send_one(body: Any) -> http.Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "method": method,
            "path": f"{events.PREFIX}{table}/events",
            "headers": [(b"host", b"localhost"), *headers],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": raw, "more_body": False}

        return await http.answer_safely(
            lambda scope, receive: intake.answer(table, scope, receive), scope, receive
        )

    async def send_all() -> list[http.Answer]:
        return await asyncio.gather(*(send_one(body) for body in bodies))

    return asyncio.run(send_all())


def answered(answer: http.Answer) -> tuple[int, Any]:
    document = json.loads(answer.body)
    return answer.status, document.get("code", document)


class TestPaths:
    @pytest.mark.parametrize("path", ["/v1/tables/a.b/events/", "/v1/tables/a/b/events", "/x"])
    def test_other_paths_are_not_ours(self, path: str):
        assert table_of(path) is None

    def test_the_table_stands_in_the_path(self):
        assert table_of("/v1/tables/shop.orders/events") == "shop.orders"
        assert table_of("/v1/tables//events") is None


class TestTaken:
    def test_what_was_answered_is_in_the_log(self, settings: Settings, intake: EventIntake):
        rows = payments(0, 3)
        [answer] = send(intake, rows)
        assert answered(answer) == (
            202,
            {"table": TRANSACTIONS, "accepted": 3, "sequence": 2},
        )
        kept = PushLog.of(settings).read(TRANSACTIONS, 0, 10)
        assert [json.loads(value) for _, value in kept] == rows

    def test_the_same_body_is_answered_the_same_and_kept_once(self, settings, intake):
        first, again = (send(intake, payments(0, 2))[0] for _ in range(2))
        assert first == again
        assert PushLog.of(settings).head(TRANSACTIONS).next_sequence == 2

    def test_under_another_key_the_same_body_is_another_one(self, settings, intake):
        for key in (b"a", b"b", b"a"):
            send(intake, payments(0, 1), headers=(JSON, (b"idempotency-key", key)))
        assert PushLog.of(settings).head(TRANSACTIONS).next_sequence == 2

    def test_bodies_at_once_are_each_answered_with_their_own_numbers(self, settings, intake):
        answers = send(intake, *([row] for row in payments(0, 30)))
        receipts = [json.loads(answer.body) for answer in answers]
        assert sorted(receipt["sequence"] for receipt in receipts) == list(range(30))
        kept = dict(PushLog.of(settings).read(TRANSACTIONS, 0, 100))
        for row, receipt in zip(payments(0, 30), receipts, strict=True):
            assert json.loads(kept[receipt["sequence"]]) == row

    def test_lines_are_taken_under_their_type(self, intake: EventIntake):
        body = b"\n".join(json.dumps(row).encode() for row in payments(0, 2))
        [answer] = send(intake, body, headers=((b"content-type", b"application/x-ndjson"),))
        assert answer.status == 202


class TestRefused:
    def test_of_a_body_with_one_bad_event_nothing_is_kept(self, settings, intake):
        rows = payments(0, 3)
        rows[1]["TX_AMOUNT"] = "12"
        [answer] = send(intake, rows)
        assert answer.status == 422
        assert json.loads(answer.body)["path"] == "$[1].TX_AMOUNT"
        assert PushLog.of(settings).head(TRANSACTIONS).next_sequence == 0

    @pytest.mark.parametrize(
        "table", ["card_fraud.nothing", "nobody.orders", "x", "a.b.c", "..", "\ud800.x"]
    )
    def test_an_unknown_table_is_404(self, intake: EventIntake, table: str):
        assert answered(send(intake, payments(0, 1), table=table)[0]) == (404, "unknown_table")

    def test_a_table_whose_stream_takes_no_pushes_is_404(self, intake, monkeypatch):
        monkeypatch.setattr(events, "load_streams", lambda *_: {})
        assert answered(send(intake, payments(0, 1))[0]) == (404, "no_stream")

    def test_another_method_is_405(self, intake: EventIntake):
        [answer] = send(intake, b"", method="GET")
        assert answer.status == 405
        assert (b"allow", b"POST") in answer.headers

    def test_another_content_type_is_415(self, intake: EventIntake):
        [answer] = send(intake, payments(0, 1), headers=((b"content-type", b"text/csv"),))
        assert answered(answer) == (415, "wrong_content_type")

    def test_a_body_too_large_is_413(self, settings: Settings, intake: EventIntake):
        [answer] = send(intake, b" " * (settings.serving.max_body_bytes + 1))
        assert answered(answer) == (413, "too_large")

    def test_a_full_log_is_503_and_says_when_to_try_again(self, settings, intake):
        intake._log = PushLog(settings.push_log_url, max_waiting_events=2)
        assert send(intake, payments(0, 2))[0].status == 202
        [answer] = send(intake, payments(2, 1))
        assert answered(answer) == (503, "full")
        assert [value for name, value in answer.headers if name == b"retry-after"] == [b"30"]

    def test_a_log_that_does_not_answer_is_503_and_then_taken_again(self, settings, intake):
        path = Path(settings.push_log_url.removeprefix("sqlite:///"))
        path.mkdir(parents=True)
        assert answered(send(intake, payments(0, 1))[0]) == (503, "log_unavailable")
        path.rmdir()
        assert send(intake, payments(0, 1))[0].status == 202

    def test_broken_declarations_are_503(self, intake: EventIntake, monkeypatch):
        from penstock.errors import DeclarationError

        def broken(*_: object) -> None:
            raise DeclarationError("no")

        monkeypatch.setattr(events, "get_table", broken)
        assert answered(send(intake, payments(0, 1))[0]) == (503, "broken_declarations")
