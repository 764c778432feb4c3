"""The models in a shared replica's memory: loaded when they are asked for, the idlest go first.

A model's memory is what the process grew by while it was loaded, and its files' size at the least.
One is loaded at a time, on a thread, and the others answer meanwhile.
"""

import asyncio
import ctypes
import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from penstock.errors import PenstockError, RequestError
from penstock.serving import http
from penstock.serving.memory_policy import Held, make_room
from penstock.serving.metrics import SharedMetrics
from penstock.serving.model_server import ModelArguments, ModelServer

LOOK_S = 0.2
"""So long a replica may answer with a version that is no longer the target."""
_TRY_AGAIN_S = 5.0
"""So long what could not be loaded is left alone."""


@dataclass(eq=False)
class Loaded:
    """A model version in memory, and how many wait for its answers."""

    server: ModelServer
    num_bytes: int
    used_s: float
    num_waiting: int = 0
    is_retired: bool = False

    @property
    def is_busy(self) -> bool:
        """Whether it must stay."""
        return self.num_waiting > 0 or self.server.has_work


@dataclass(eq=False)
class _Entry:
    """What is known of a model."""

    wanted: ModelArguments | None = None
    looked_s: float = float("-inf")
    loaded: Loaded | None = None
    num_asking: int = 0
    """How many wait for it to be loaded: it must not go before they have asked it."""
    loading: "asyncio.Task[None] | None" = None
    failed: tuple[ModelArguments, str, float] | None = None
    """What could not be loaded, why, and when."""
    last_num_bytes: dict[str, int] = field(default_factory=dict)
    """By digest: what it took when it was loaded last."""


class LoadedModels:
    """Keeps within a replica's memory what is asked for. Used on one loop."""

    def __init__(
        self,
        *,
        find: Callable[[str], ModelArguments | None],
        load: Callable[[ModelArguments], ModelServer],
        max_bytes: int,
        metrics: SharedMetrics,
    ) -> None:
        """Prepare; nothing is loaded.

        Args:
            find: gives what should be served of a model now; None: nothing.
            load: loads it, on a thread.
            max_bytes: what all models together may take.
            metrics: of the replica.
        """
        self._find = find
        self._load = load
        self._max_bytes = max_bytes
        self._metrics = metrics
        self._entries: dict[str, _Entry] = {}
        self._one_at_a_time = asyncio.Lock()
        self._closing: set[asyncio.Task[None]] = set()

    async def get(self, model: str) -> Loaded:
        """Give a model's version, loaded; use it within `in_use`, before anything else is awaited.

        Raises:
            RequestError: 404, nothing of it should be served; 503, it cannot be loaded.
        """
        entry = self._entries.setdefault(model, _Entry())
        now_s = time.monotonic()
        if now_s - entry.looked_s > LOOK_S:
            entry.looked_s = now_s
            entry.wanted = self._find(model)
        wanted = entry.wanted
        if wanted is None:
            self._drop(model)
            raise http.unknown_model(model)
        if entry.loaded is None or entry.loaded.server.arguments != wanted:
            self._begin(entry, wanted, now_s)
            if entry.loaded is None:
                await self._wait(entry)
            if entry.loaded is None:
                reason = entry.failed[1] if entry.failed else "it is gone again"
                raise RequestError(503, http.NOT_LOADED, f"{model} cannot be loaded: {reason}")
        entry.loaded.used_s = time.monotonic()
        return entry.loaded

    @contextmanager
    def in_use(self, loaded: Loaded) -> Iterator[ModelServer]:
        """Keep a version in memory meanwhile."""
        loaded.num_waiting += 1
        try:
            yield loaded.server
        finally:
            loaded.num_waiting -= 1
            if loaded.is_retired and not loaded.num_waiting:
                self._close(loaded)

    def failure(self, model: str) -> str | None:
        """Say why the target of a model is not what answers; None: it is, or will be."""
        entry = self._entries.get(model)
        if entry is None or entry.failed is None or entry.failed[0] != entry.wanted:
            return None
        return entry.failed[1]

    def check_health(self) -> None:
        """Predict once with each; what no longer can goes, and is loaded again when asked for.

        What should be served no more goes, too: nobody asks for it.
        """
        for model, entry in list(self._entries.items()):
            try:
                if self._find(model) is None:
                    self._drop(model)
                elif entry.loaded is not None:
                    entry.loaded.server.check_health()
            except RequestError:
                # What should be served cannot be read, and is logged: what is here serves on.
                continue
            except PenstockError:
                http.logger.exception("%s no longer predicts; it is loaded anew", model)
                self._retire(model, entry)
        self._make_room(0)

    def close(self) -> None:
        """Write what the logs still hold."""
        for entry in self._entries.values():
            if entry.loaded is not None:
                entry.loaded.server.close()

    @staticmethod
    async def _wait(entry: _Entry) -> None:
        """Wait until a model is loaded, or cannot be."""
        entry.num_asking += 1
        try:
            if entry.loading is not None:
                # Shielded: who gives up must not take the model from those who wait on.
                await asyncio.shield(entry.loading)
        finally:
            entry.num_asking -= 1

    def _begin(self, entry: _Entry, wanted: ModelArguments, now_s: float) -> None:
        if entry.loading is not None:
            return
        if entry.failed is not None:
            failed, _, failed_s = entry.failed
            if failed == wanted and now_s - failed_s < _TRY_AGAIN_S:
                return
            entry.failed = None
        entry.loading = asyncio.get_running_loop().create_task(self._bring(entry, wanted))

    async def _bring(self, entry: _Entry, wanted: ModelArguments) -> None:
        try:
            async with self._one_at_a_time:
                least_bytes = _size(Path(wanted.package_path))
                known_bytes = entry.last_num_bytes.get(wanted.digest, least_bytes)
                # Also where an older version stays until the new one is there: both are in memory.
                await self._make_room_and_wait(known_bytes)
                process = psutil.Process()
                before_bytes = process.memory_info().rss
                server = await asyncio.to_thread(self._load, wanted)
                grown_bytes = process.memory_info().rss - before_bytes
            num_bytes = max(grown_bytes, known_bytes)
            entry.last_num_bytes = {wanted.digest: num_bytes}
            self._retire(wanted.model, entry)
            entry.loaded = Loaded(server, num_bytes, used_s=time.monotonic())
            entry.failed = None
            self._metrics.loaded(wanted.model, num_bytes)
            server.start_work()
            self._make_room(0, but=entry.loaded)
        except Exception as error:  # noqa: BLE001 - whatever a package does, the others are served
            http.logger.exception("%s version %s cannot be loaded", wanted.model, wanted.version)
            told = error.found if isinstance(error, PenstockError) else "it is logged"
            entry.failed = (wanted, told, time.monotonic())
        finally:
            entry.loading = None

    def _drop(self, model: str) -> None:
        """Forget a model that should not be served; whoever asks for names costs no memory."""
        entry = self._entries[model]
        self._retire(model, entry)
        if entry.loading is None:
            del self._entries[model]

    def _make_room(self, coming_bytes: int, *, but: Loaded | None = None) -> None:
        held = [
            Held(
                model=model,
                num_bytes=entry.loaded.num_bytes,
                used_s=entry.loaded.used_s,
                is_busy=entry.loaded.is_busy or entry.num_asking > 0 or entry.loaded is but,
            )
            for model, entry in self._entries.items()
            if entry.loaded is not None
        ]
        eviction = make_room(held, max_bytes=self._max_bytes, coming_bytes=coming_bytes)
        for model in eviction.models:
            http.logger.info("%s leaves memory: %s", model, eviction.reason)
            self._metrics.evicted(model)
            self._retire(model, self._entries[model])

    async def _make_room_and_wait(self, coming_bytes: int) -> None:
        self._make_room(coming_bytes)
        if self._closing:
            await asyncio.wait(self._closing)

    def _retire(self, model: str, entry: _Entry) -> None:
        loaded, entry.loaded = entry.loaded, None
        if loaded is None:
            return
        self._metrics.gone(model)
        loaded.is_retired = True
        if not loaded.num_waiting:
            self._close(loaded)

    def _close(self, loaded: Loaded) -> None:
        closing = asyncio.get_running_loop().create_task(asyncio.to_thread(_let_go, loaded.server))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _let_go(server: ModelServer) -> None:
    server.close()
    # A server's parts know each other; and what the allocator keeps would count as the next one's.
    gc.collect()
    _trim()


def _trim() -> None:
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
