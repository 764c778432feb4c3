"""Models that come and go in a replica's memory; the models are made up, all else is real."""

import asyncio
import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from penstock.errors import IntegrityError, RequestError
from penstock.serving import loaded_models
from penstock.serving.loaded_models import Loaded, LoadedModels
from penstock.serving.model_server import ModelArguments

MIB = 1 << 20


class Server:
    """A model that takes no memory to speak of; its package says how much it counts."""

    def __init__(self, arguments: ModelArguments) -> None:
        self.arguments = arguments
        self.has_work = self.is_closed = self.is_broken = self.works = False

    def start_work(self) -> None:
        self.works = True

    def check_health(self) -> None:
        if self.is_broken:
            raise IntegrityError("it no longer predicts")

    def close(self) -> None:
        self.is_closed = True


class Counts:
    """What would be exported."""

    def __init__(self) -> None:
        self.loads: Counter[str] = Counter()
        self.evictions: Counter[str] = Counter()
        self.num_bytes: dict[str, int] = {}

    def loaded(self, model: str, num_bytes: int) -> None:
        self.loads[model] += 1
        self.num_bytes[model] = num_bytes

    def evicted(self, model: str) -> None:
        self.evictions[model] += 1

    def gone(self, model: str) -> None:
        self.num_bytes[model] = 0


class Room:
    """Packages of 20 MiB each, of which three fit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.targets: dict[str, ModelArguments] = {}
        self.counts = Counts()
        self.may_load = threading.Event()
        self.may_load.set()
        self.broken: set[str] = set()
        self.servers: list[Server] = []
        self.models = LoadedModels(
            find=self.targets.get, load=self.load, max_bytes=65 * MIB, metrics=self.counts
        )

    def aim(self, model: str, version: int = 1, size: int = 20 * MIB) -> ModelArguments:
        package = self.folder / f"{model}-{version}"
        package.mkdir(exist_ok=True)
        with (package / "model.onnx").open("wb") as graph:
            graph.truncate(size)
        self.targets[model] = ModelArguments(
            model=model,
            version=version,
            digest=f"{model}-{version}",
            package_path=str(package),
            max_body_bytes=1024,
        )
        return self.targets[model]

    def load(self, arguments: ModelArguments) -> Any:
        assert self.may_load.wait(30)
        if arguments.digest in self.broken:
            raise IntegrityError("model.onnx has not the signed SHA-256", next_step="don't")
        server = Server(arguments)
        self.servers.append(server)
        return server

    async def version(self, model: str) -> int:
        return (await self.models.get(model)).server.arguments.version

    async def until(self, happened: Callable[[], Any]) -> None:
        for _ in range(3_000):
            if happened():
                return
            await asyncio.sleep(0.01)
        raise AssertionError("it does not happen")


@pytest.fixture
def room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Room:
    monkeypatch.setattr(loaded_models, "LOOK_S", -1.0)
    return Room(tmp_path)


def run(work: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(work(), timeout=60))


class TestGet:
    def test_many_who_ask_at_once_wait_for_one_load(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            found = await asyncio.gather(*(room.models.get("dam") for _ in range(9)))
            assert len({id(loaded) for loaded in found}) == 1

        run(work)
        assert room.counts.loads == {"dam": 1}
        assert room.servers[0].works

    def test_one_that_nobody_serves_costs_nothing(self, room: Room):
        async def work() -> None:
            for number in range(9):
                with pytest.raises(RequestError, match="no model named") as refused:
                    await room.models.get(f"unknown{number}")
                assert refused.value.status == 404
            assert room.models._entries == {}

        run(work)

    def test_who_gives_up_does_not_take_it_from_those_who_wait_on(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            room.may_load.clear()
            impatient, patient = (asyncio.ensure_future(room.version("dam")) for _ in range(2))
            await asyncio.sleep(0.05)
            impatient.cancel()
            room.may_load.set()
            assert await patient == 1

        run(work)

    def test_the_old_version_answers_until_the_new_one_is_there(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            assert await room.version("dam") == 1
            room.may_load.clear()
            room.aim("dam", 2)
            assert await room.version("dam") == 1
            room.may_load.set()
            while await room.version("dam") == 1:
                await asyncio.sleep(0.01)
            await room.until(lambda: room.servers[0].is_closed)

        run(work)

    def test_an_old_version_that_somebody_waits_for_stays_until_they_have_their_answer(
        self, room: Room
    ):
        async def work() -> None:
            room.aim("dam")
            with room.models.in_use(await room.models.get("dam")):
                room.aim("dam", 2)
                while await room.version("dam") == 1:
                    await asyncio.sleep(0.01)
                await asyncio.sleep(0.05)
                assert not room.servers[0].is_closed
            await room.until(lambda: room.servers[0].is_closed)

        run(work)

    def test_what_cannot_be_loaded_is_told_and_left_alone_for_a_while(self, room, monkeypatch):
        async def work() -> None:
            room.broken = {"dam-1"}
            room.aim("dam")
            for _ in range(5):
                with pytest.raises(RequestError, match="not the signed SHA-256") as refused:
                    await room.models.get("dam")
                assert (refused.value.status, refused.value.code) == (503, "not_loaded")
            room.broken = set()
            monkeypatch.setattr(loaded_models, "_TRY_AGAIN_S", 0.0)
            assert await room.version("dam") == 1
            assert room.models.failure("dam") is None

        run(work)

    def test_a_new_version_that_cannot_be_loaded_leaves_the_old_one(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            await room.models.get("dam")
            room.broken = {"dam-2"}
            room.aim("dam", 2)
            await room.models.get("dam")
            await room.until(lambda: room.models.failure("dam"))
            assert await room.version("dam") == 1
            room.aim("dam", 3)
            while await room.version("dam") == 1:
                await asyncio.sleep(0.01)
            assert room.models.failure("dam") is None

        run(work)

    def test_what_should_be_served_no_more_is_let_go(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            await room.models.get("dam")
            del room.targets["dam"]
            with pytest.raises(RequestError, match="no model named"):
                await room.models.get("dam")
            await room.until(lambda: room.servers[0].is_closed)

        run(work)

    def test_what_nobody_asks_for_any_more_is_let_go_too(self, room: Room):
        async def work() -> None:
            room.aim("dam")
            await room.models.get("dam")
            del room.targets["dam"]
            room.models.check_health()
            await room.until(lambda: room.servers[0].is_closed)
            assert room.models._entries == {}

        run(work)


class TestMemory:
    def test_the_least_recently_used_goes_and_comes_back_when_it_is_asked_for(self, room: Room):
        async def work() -> None:
            for model in ("a", "b", "c"):
                room.aim(model)
                await room.models.get(model)
            await room.models.get("a")
            room.aim("d")
            await room.models.get("d")
            assert room.counts.evictions == {"b": 1}
            assert room.counts.num_bytes["b"] == 0
            await room.until(lambda: room.servers[1].is_closed)
            assert await room.version("b") == 1

        run(work)
        assert room.counts.loads["b"] == 2

    def test_a_package_counts_at_least_what_its_files_hold(self, room: Room):
        async def work() -> None:
            room.aim("a", size=7 * MIB)
            loaded: Loaded = await room.models.get("a")
            assert loaded.num_bytes >= 7 * MIB

        run(work)

    def test_who_is_waited_for_or_has_work_stays(self, room: Room):
        async def work() -> None:
            for model in ("a", "b", "c"):
                room.aim(model)
            with room.models.in_use(await room.models.get("a")):
                (await room.models.get("b")).server.has_work = True
                await room.models.get("c")
                room.aim("d")
                await room.models.get("d")
                assert room.counts.evictions == {"c": 1}

        run(work)

    def test_all_that_can_be_are_kept_in_bounds_later(self, room: Room):
        async def work() -> None:
            loaded = []
            for model in ("a", "b", "c", "d"):
                room.aim(model)
                loaded.append(await room.models.get(model))
                loaded[-1].num_waiting += 1
            assert room.counts.evictions == {}
            loaded[0].num_waiting -= 1
            room.models.check_health()
            assert room.counts.evictions == {"a": 1}

        run(work)


def test_what_no_longer_predicts_is_loaded_anew(room: Room):
    async def work() -> None:
        room.aim("dam")
        await room.models.get("dam")
        room.servers[0].is_broken = True
        room.models.check_health()
        await room.models.get("dam")
        assert len(room.servers) == 2
        room.models.close()
        assert room.servers[1].is_closed

    run(work)
