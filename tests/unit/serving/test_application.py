import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import orjson
import pytest

from deployed import deployment, version
from penstock.errors import ClusterError
from penstock.serving import application, server
from penstock.serving.http import ROOT_APP
from penstock.settings import Settings

TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:spills:replica.initialize_and_get_metadata() (pid=7, ip=127.0.0.1)
  File "replica.py", line 60, in __init__
penstock.errors.IntegrityError: model.onnx has not the signed SHA-256. Next: do not load it
"""
SETTINGS = Settings(project_root=Path())
OURS, OTHER = {"version": 2, "digest": "0" * 64}, {"version": 1, "digest": "1" * 64}


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(application, "_POLL_S", 0.001)
    monkeypatch.setattr(application, "_START_TIMEOUT_S", 0.05)
    monkeypatch.setattr(application, "_ANSWER_TIMEOUT_S", 0.2)


class TestCause:
    def test_it_is_picked_out_of_the_replicas_traceback(self):
        said = application.cause(TRACEBACK)
        assert said.startswith("penstock.errors.IntegrityError: model.onnx has not")

    def test_without_an_error_line_it_is_the_last_line(self):
        assert application.cause("Deploying.\nwaiting for 2 CPU\n") == "waiting for 2 CPU"
        assert application.cause("") == "no reason is known"


def state(status: str, message: str = "") -> dict[str, str]:
    return {"status": status, "message": message}


def tells(monkeypatch: pytest.MonkeyPatch, *states: dict[str, Any]) -> None:
    """Let Serve tell these states, one a look, and the last one from then on."""
    told = chain(states, repeat(states[-1]))
    monkeypatch.setattr(server, "applications", lambda _: next(told))


class TestRunning:
    def test_it_waits_for_the_model_and_the_root_and_the_caller_may_work_meanwhile(
        self, monkeypatch
    ):
        up, deploying = state("RUNNING"), state("DEPLOYING")
        tells(
            monkeypatch,
            {},
            {"spills": up},
            {"spills": deploying, ROOT_APP: up},
            {"spills": up, ROOT_APP: up},
        )
        calls: list[None] = []
        application.wait_until_running(SETTINGS, "spills", meanwhile=lambda: calls.append(None))
        assert len(calls) == 3

    @pytest.mark.parametrize("status", ["DEPLOY_FAILED", "UNHEALTHY"])
    @pytest.mark.parametrize("name", ["spills", ROOT_APP])
    def test_what_failed_ends_the_wait_with_its_cause(self, monkeypatch, status: str, name: str):
        tells(monkeypatch, {name: state(status, TRACEBACK)})
        with pytest.raises(ClusterError, match=r"^penstock\.errors\.IntegrityError"):
            application.wait_until_running(SETTINGS, "spills")

    def test_what_never_runs_is_told_with_what_it_waits_for(self, monkeypatch):
        tells(monkeypatch, {"spills": state("DEPLOYING", "waiting for 2 CPU")})
        with pytest.raises(ClusterError, match=r"no replica was ready .* waiting for 2 CPU"):
            application.wait_until_running(SETTINGS, "spills")


@contextmanager
def pages(*documents: Any) -> Iterator[tuple[str, list[str | None]]]:
    """Give the model's page over HTTP, one document an answer; and the keys that were shown."""
    told, keys = chain(documents, repeat(documents[-1])), []

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.append(self.headers["Authorization"])
            self.send_response(200 if self.path == "/v1/models/spills" else 404)
            self.end_headers()
            self.wfile.write(orjson.dumps(next(told)))

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Page) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}", keys
        finally:
            running.shutdown()
            thread.join()


def wait(url: str, rollout_id: str | None = None) -> None:
    wanted = deployment(version(Path("v"), 2), url=url)
    application.wait_until_answering(wanted, "a.key", rollout_id=rollout_id)


class TestAnswering:
    def test_the_version_must_answer_three_times_in_a_row(self):
        with pages(OTHER, OURS, OURS, OTHER, OURS) as (url, keys):
            wait(url)
        assert keys == ["Bearer a.key"] * 7

    def test_a_version_on_trial_must_be_there_where_one_is_wanted(self):
        on_trial = {**OURS, "rollout": {"id": "r2"}}
        with pages(OURS, {**OURS, "rollout": {"id": "r1"}}, on_trial) as (url, keys):
            wait(url, "r2")
        assert len(keys) == 5

    def test_replicas_that_still_hold_one_on_trial_are_not_those_that_are_wanted(self):
        with pages({**OURS, "rollout": {"id": "r1"}}, OURS) as (url, keys):
            wait(url)
        assert len(keys) == 4

    @pytest.mark.parametrize("document", [OTHER, [], {**OURS, "rollout": None}])
    def test_whatever_else_answers_is_told_in_the_end(self, document: Any):
        with pages(document) as (url, _), pytest.raises(ClusterError, match="it runs, but"):
            wait(url)

    def test_where_nothing_listens_that_is_told(self):
        with pytest.raises(ClusterError, match="refused"):
            wait("http://127.0.0.1:9")
