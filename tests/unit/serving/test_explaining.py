"""Explanations at a replica: a real process of a real version; only the online store is made up."""

import asyncio
import json
import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import orjson
import psutil
import pytest

from bundles import FEATURES, native_score, write_bundle
from explained import shapley_values
from penstock.errors import ClusterError, StoreEmptyError
from penstock.handover import BACKGROUND_FILE, ServingPolicy
from penstock.registry.package import RequestField, read_bundle, seal
from penstock.serving import explaining
from penstock.serving.explaining import ExplainerProcess, Explaining
from penstock.settings import Settings
from penstock.training.background import draw_background
from waiting import wait_for

PATH = "/v1/models/spills/explain"
WITHIN_S = 300.0
"""The nicest of all processes waits long on a busy machine."""
ROWS = np.random.default_rng(0).normal((50.0, 10.0, 0.01), (40.0, 5.0, 0.1), (60, 3))
FIELDS = tuple(RequestField(name=name, dtype="float64") for name in FEATURES)


def arm(*, version: int = 3, explanations: bool = True, package_path: str, digest: str) -> Any:
    def look_up(rows: list[dict[str, float]]) -> Any:
        return SimpleNamespace(values=np.array([[row[name] for name in FEATURES] for row in rows]))

    signature = SimpleNamespace(
        model="spills",
        request_fields=FIELDS,
        feature_names=FEATURES,
        serving=ServingPolicy(explanations=explanations),
    )
    return SimpleNamespace(
        signature=signature,
        version=version,
        package_path=package_path,
        digest=digest,
        look_up=look_up,
    )


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str]]:
    """The folder and the digest of a version with a background, in a project that is found."""
    root = tmp_path_factory.mktemp("explained")
    (root / "pyproject.toml").write_text("[tool.penstock]\n")
    project = Settings(project_root=root)
    bundle = write_bundle(root / "bundle")
    drawn = draw_background(ROWS, feature_names=FEATURES)
    (bundle / BACKGROUND_FILE).write_text(drawn.model_dump_json())
    folder = project.models_path / "spills" / "3"
    made = seal(read_bundle(bundle, model="spills"), folder, project, version=3, card="# Test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PENSTOCK_PROJECT_ROOT", str(root))
        yield str(folder), made.digest


# One for all that may share it: a start takes seconds.
@pytest.fixture(scope="module")
def process(sealed: tuple[str, str]) -> Iterator[ExplainerProcess]:
    made = ExplainerProcess(*sealed)
    yield made
    made.end()


class TestProcess:
    def test_it_gives_the_shapley_values_and_starts_once(self, process: ExplainerProcess):
        rows = [[80.0, 3.0, 0.2], [float("nan"), 12.0, 0.0]]
        document = process.ask(rows, within_s=WITHIN_S)
        first = process.pid
        assert document["is_exact"]
        for row, told in zip(rows, document["explanations"], strict=True):
            found = {part["feature"]: part["contribution"] for part in told["contributions"]}
            expected = shapley_values(native_score, np.array(row), ROWS)
            assert [found[name] for name in FEATURES] == pytest.approx(expected, abs=1e-6)
            assert told["base_score"] + sum(found.values()) == pytest.approx(told["score"])
        process.ask(rows, within_s=WITHIN_S)
        assert process.pid == first

    def test_it_is_as_nice_as_can_be(self, process: ExplainerProcess):
        process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)
        assert psutil.Process(process.pid).nice() == 19

    def test_killed_it_is_started_again_by_the_next_question(self, process: ExplainerProcess):
        process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)
        killed = process.pid
        os.kill(killed, signal.SIGKILL)
        wait_for(lambda: psutil.Process(killed).status() == psutil.STATUS_ZOMBIE)
        assert process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)["explanations"]
        assert process.pid != killed

    @pytest.mark.slow
    def test_it_ends_when_the_one_who_asks_is_gone(self, process: ExplainerProcess):
        process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)
        process._pipe.close()
        assert process._process.wait(120) == 0
        process.end()

    @pytest.mark.slow
    def test_one_that_is_too_late_is_ended(self, process: ExplainerProcess):
        process.end()
        with pytest.raises(TimeoutError):
            process.ask([[80.0, 3.0, 0.2]], within_s=0.01)
        assert process.pid is None
        assert process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)["explanations"]

    @pytest.mark.slow
    def test_a_package_that_is_not_the_registered_one_is_not_loaded(self, sealed):
        process = ExplainerProcess(sealed[0], "0" * 64)
        with pytest.raises(ClusterError, match="not the one that was registered"):
            process.ask([[80.0, 3.0, 0.2]], within_s=WITHIN_S)
        assert process.pid is None


def ask(asked: Explaining, rows: Any, path: str = PATH, timeout_s: float | None = None) -> Any:
    """Send one request; give the status, the document and the headers."""
    return asyncio.run(asking(asked, rows, path, timeout_s))


async def asking(asked: Explaining, rows: Any, path: str, timeout_s: float | None) -> Any:
    body = orjson.dumps({"rows": rows})

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    headers = [(b"host", b"localhost"), (b"content-type", b"application/json")]
    scope = {"path": path, "method": "POST", "headers": headers}
    answer = await asked.answer(scope, receive, timeout_s)
    return answer.status, json.loads(answer.body), dict(answer.headers)


ROW = dict(zip(FEATURES, (80.0, 3.0, 0.2), strict=True))


@pytest.fixture
def asked(
    sealed: tuple[str, str], process: ExplainerProcess, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Explaining]:
    monkeypatch.setattr(explaining, "ExplainerProcess", lambda *_: process)
    monkeypatch.setattr(explaining, "ANSWER_WITHIN_S", WITHIN_S)
    folder, digest = sealed
    made = Explaining(arm(package_path=folder, digest=digest), None, max_body_bytes=1 << 20)
    yield made
    made._pool.shutdown()


class TestAnswers:
    def test_a_row_is_explained_by_the_version_that_answers(self, asked: Explaining):
        status, document, _ = ask(asked, [ROW])
        assert (status, document["model"], document["version"]) == (200, "spills", 3)
        (told,) = document["explanations"]
        assert told["score"] == pytest.approx(native_score(np.array([[80.0, 3.0, 0.2]]))[0])
        assert (
            ask(asked, [ROW], f"{PATH.removesuffix('/explain')}/versions/3/explain")[1] == document
        )

    def test_too_many_rows_are_refused_before_anything_is_started(self, asked: Explaining):
        asked._own.process.end()
        status, document, _ = ask(asked, [ROW] * 17)
        assert (status, document["code"]) == (422, "too_many_rows")
        assert asked._own.process.pid is None

    def test_a_version_that_gives_none_says_what_to_do(self):
        off = Explaining(
            arm(explanations=False, package_path="", digest=""), None, max_body_bytes=1 << 20
        )
        status, document, _ = ask(off, [ROW])
        assert (status, document["code"]) == (404, "no_explanations")
        assert "ServingPolicy(explanations=True)" in document["message"]

    def test_an_empty_online_store_is_told(self, asked: Explaining):
        def look_up(_rows: Any) -> Any:
            raise StoreEmptyError("the store is empty")

        asked._own.arm.look_up = look_up
        status, document, _ = ask(asked, [ROW])
        assert (status, document["code"]) == (503, "features_absent")

    def test_beyond_four_at_a_time_the_caller_is_told_to_come_back(
        self, asked: Explaining, monkeypatch: pytest.MonkeyPatch
    ):
        ended = threading.Event()

        def work(_process: Any, _rows: Any) -> dict[str, Any]:
            assert ended.wait(60)
            return {"explanations": [], "is_exact": True}

        monkeypatch.setattr(explaining, "_ask_for", work)

        async def six() -> list[Any]:
            tasks = [asyncio.create_task(asking(asked, [ROW], PATH, None)) for _ in range(6)]
            await asyncio.wait(tasks[4:])
            ended.set()
            return await asyncio.gather(*tasks)

        found = asyncio.run(six())
        assert [status for status, _, _ in found] == [200] * 4 + [503] * 2
        assert found[-1][1]["code"] == "overloaded"
        assert int(found[-1][2][b"retry-after"]) >= 1

    def test_who_gives_up_gets_504_and_ends_nothing(
        self, asked: Explaining, monkeypatch: pytest.MonkeyPatch
    ):
        ask(asked, [ROW])
        running = asked._own.process.pid
        whole, may_go_on = explaining._ask_for, threading.Event()

        def late(*arguments: Any) -> dict[str, Any]:
            may_go_on.wait(60)
            return whole(*arguments)

        monkeypatch.setattr(explaining, "_ask_for", late)
        threading.Timer(0.5, may_go_on.set).start()
        status, document, _ = ask(asked, [ROW], timeout_s=0.05)
        assert (status, document["code"]) == (504, "deadline_exceeded")
        assert ask(asked, [ROW])[0] == 200
        assert asked._own.process.pid == running

    @pytest.mark.slow
    def test_nobody_asking_ends_the_process(
        self, asked: Explaining, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(explaining, "_IDLE_S", 0.05)

        async def once() -> None:
            assert (await asking(asked, [ROW], PATH, None))[0] == 200
            await asyncio.sleep(0.2)

        asyncio.run(once())
        wait_for(lambda: asked._own.process.pid is None)


class Trial(SimpleNamespace):
    """A rollout that gives the second version the rows whose amount is above 50."""

    def takes(self, rows: list[dict[str, float]]) -> bool:
        return rows[0]["amount"] > 50


def test_during_a_rollout_each_row_is_explained_by_the_version_that_answers_it(
    sealed: tuple[str, str], monkeypatch: pytest.MonkeyPatch
):
    folder, digest = sealed
    both = [arm(version=number, package_path=folder, digest=digest) for number in (3, 4)]
    asked = Explaining(both[0], Trial(arm=both[1]), max_body_bytes=1 << 20)
    monkeypatch.setattr(explaining, "_ask_for", lambda *_: {"explanations": [], "is_exact": True})
    assert ask(asked, [ROW])[1]["version"] == 4
    assert ask(asked, [{**ROW, "amount": 20.0}])[1]["version"] == 3
    route = PATH.removesuffix("/explain")
    assert ask(asked, [ROW], f"{route}/versions/3/explain")[1]["version"] == 3
    assert asked.paths == {PATH, f"{route}/versions/3/explain", f"{route}/versions/4/explain"}
