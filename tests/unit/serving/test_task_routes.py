import asyncio
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from payments import settings_in
from penstock.errors import RequestError
from penstock.registry.package import RequestField, Signature
from penstock.serving import http, task_store
from penstock.serving.protocols import Protocols
from penstock.serving.requests import RequestParser
from penstock.serving.task_routes import TaskRoutes, cut
from penstock.serving.task_store import TaskStore

TYPES = ("int64", "float64", "bool", "string", "timestamp")
FIELDS = tuple(RequestField(name=dtype, dtype=dtype) for dtype in TYPES)
SIGNATURE = Signature(
    model="spills",
    estimator="logistic_regression",
    use_case="dam",
    feature_service="dam_v1",
    feature_names=("amount",),
    request_fields=FIELDS,
    label="SPILLED",
    threshold=None,
)
PARSER = RequestParser(FIELDS, max_rows=3, max_body_bytes=1 << 20, feature_names=("amount",))
BASE = "/v1/models/spills"
ROW = {"int64": 1, "float64": 2.5, "bool": True, "string": "ö", "timestamp": "2024-05-01"}
ROW["timestamp"] += "T10:00:00Z"


@pytest.fixture
def routes(tmp_path: Path) -> TaskRoutes:
    protocols = Protocols(model="spills", version=2, digest="d", signature=SIGNATURE, parser=PARSER)
    return TaskRoutes(settings_in(tmp_path), SIGNATURE, protocols, lambda: protocols.posts)


def ask(routes: TaskRoutes, path: str, body: object = None, *, method="POST", **headers: str):
    text = body if isinstance(body, bytes) else json.dumps(body).encode()

    async def receive():
        return {"type": "http.request", "body": text, "more_body": False}

    async def answer(scope, receive):
        found = await routes.answer(scope, receive)
        return found or http.Answer(status=999, body=b"{}")

    named = {"host": "localhost", "content-type": "application/json", **headers}
    listed = [(name.encode(), value.encode()) for name, value in named.items()]
    scope = {"path": path, "method": method, "headers": listed}
    return asyncio.run(http.answer_safely(answer, scope, receive))


def taken(routes: TaskRoutes, **headers: str) -> dict:
    reply = ask(routes, f"{BASE}/predict-async", {"rows": [ROW]}, **headers)
    assert reply.status == 202, reply.body
    return json.loads(reply.body)


class TestTaken:
    def test_what_is_accepted_is_found_under_its_address(self, routes: TaskRoutes):
        receipt = taken(routes)
        found = json.loads(ask(routes, receipt["status_url"], method="GET").body)
        assert (found["task_id"], found["status"], found["num_rows"]) == (
            *(receipt["task_id"], "queued"),
            1,
        )
        assert "result" not in found

    def test_its_name_is_made_of_request_id_version_and_body(self, routes: TaskRoutes):
        name = taken(routes, **{"x-request-id": "a"})["task_id"]
        assert taken(routes, **{"x-request-id": "a"})["task_id"] == name
        assert taken(routes, **{"x-request-id": "b"})["task_id"] != name
        path = f"{BASE}/versions/2/predict-async"
        other = json.loads(ask(routes, path, {"rows": [ROW]}, **{"x-request-id": "a"}).body)
        assert other["task_id"] != name

    def test_a_deadline_is_the_callers_or_a_day(self, routes: TaskRoutes):
        def life_s(**headers: str) -> float:
            found = json.loads(
                ask(routes, taken(routes, **headers)["status_url"], method="GET").body
            )
            start, end = (datetime.fromisoformat(found[k]) for k in ("created_at", "deadline"))
            return (end - start).total_seconds()

        assert life_s() == 24 * 3600
        assert life_s(**{"x-timeout-ms": "5000", "x-request-id": "quick"}) == 5

    def test_what_is_no_request_is_refused_and_nothing_is_kept(self, routes: TaskRoutes):
        path = f"{BASE}/predict-async"
        assert ask(routes, path, {"rows": []}).status == 422
        assert ask(routes, path, b"{").status == 400
        assert ask(routes, path, {"rows": [ROW]}, **{"content-type": "text/csv"}).status == 415
        assert ask(routes, path, {"rows": [ROW]}, **{"x-request-id": "x" * 201}).status == 422
        assert ask(routes, path, {"rows": [ROW]}, **{"x-timeout-ms": "soon"}).status == 422
        assert ask(routes, path, {"rows": [{**ROW, "string": "x" * (1 << 20)}]}).status == 413
        assert ask(routes, path, method="PUT").status == 405
        assert not (routes._settings.storage_path / "serving").exists()

    def test_a_full_store_says_when_to_come_again(self, routes: TaskRoutes):
        taken(routes)
        routes._store = TaskStore(routes._settings.task_store_url, max_waiting=1)
        reply = ask(routes, f"{BASE}/predict-async", {"rows": [ROW, ROW]})
        assert (reply.status, json.loads(reply.body)["code"]) == (503, "full")
        assert (b"retry-after", b"30") in reply.headers

    def test_a_store_that_does_not_answer_is_our_fault(self, routes: TaskRoutes):
        file = routes._settings.storage_path / "serving" / "tasks.db"
        file.parent.mkdir(parents=True)
        file.write_bytes(b"no database" * 1000)
        reply = ask(routes, f"{BASE}/predict-async", {"rows": [ROW]})
        assert (reply.status, json.loads(reply.body)["code"]) == (503, "store_unavailable")

    def test_other_paths_are_not_its_own(self, routes: TaskRoutes):
        for path in ("/predict", "/versions/3/predict-async", "/tasks/", "/tasks/a/b", "/v2/infer"):
            assert ask(routes, BASE + path, {"rows": [ROW]}).status == 999


class TestRemoved:
    def test_a_task_that_waits_is_forgotten(self, routes: TaskRoutes):
        url = taken(routes)["status_url"]
        assert json.loads(ask(routes, url, method="DELETE").body)["was"] == "queued"
        assert ask(routes, url, method="GET").status == 404
        assert ask(routes, url, method="DELETE").status == 404

    def test_one_that_is_worked_on_is_not(self, routes: TaskRoutes):
        url = taken(routes)["status_url"]
        store = task_store.TaskStore(routes._settings.task_store_url)
        store.take_turn("spills", now_s=1.0, max_chunks=1)
        reply = ask(routes, url, method="DELETE")
        assert (reply.status, json.loads(reply.body)["code"]) == (409, "task_running")


ROWS = st.fixed_dictionaries(
    {
        "int64": st.integers(-(1 << 63), (1 << 63) - 1),
        "float64": st.floats(allow_nan=False, allow_infinity=False),
        "bool": st.booleans(),
        "string": st.text(st.characters(exclude_categories=("Cs",))),
        "timestamp": st.datetimes(timezones=st.just(UTC)),
    },
    optional={"amount": st.floats(allow_nan=False, allow_infinity=False)},
)


@given(st.lists(ROWS, min_size=1, max_size=9), st.integers(1, 3), st.integers(300, 3000))
def test_the_parts_say_the_same_rows_in_order(rows, most, max_bytes):
    try:
        size, chunks = cut(rows, most, max_bytes)
    except RequestError as refused:
        assert refused.status == 413
        return
    assert size <= most
    parts = [PARSER.parse(chunk) for chunk in chunks]
    assert [row for part in parts for row in part] == rows
    assert all(len(part) == size for part in parts[:-1])
    assert max(map(len, chunks)) <= max_bytes
