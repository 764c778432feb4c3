"""What a net's training needs to go on from where it was, and where that is kept.

Needs torch and numpy alone, so that a net trains on a machine that has nothing else of ours.
"""

import random
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from penstock.training.estimators.torch_rows import Seat

_STATE_FILE = "state.pt"
_LATEST = "latest"


class Journal(Protocol):
    """Where training tells how far it is, and keeps what it needs to go on."""

    def latest(self) -> AbstractContextManager[Path | None]:
        """Open the folder of the last checkpoint that is whole; None: there is none."""
        ...

    def report(self, metrics: Mapping[str, float], write: Callable[[Path], None] | None) -> None:
        """Take note of metrics and, where `write` is given, keep what it puts into a folder.

        All workers report the same number of times, each with its own part of a checkpoint.
        """
        ...


class Forgetful:
    """Keeps nothing: training that is lost begins anew."""

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """There is no checkpoint."""
        yield None

    def report(self, metrics: Mapping[str, float], write: Callable[[Path], None] | None) -> None:
        """Let it go."""


class FolderJournal:
    """Keeps the last checkpoint in a folder that every worker sees."""

    def __init__(self, folder: Path, seat: Seat, *, begin_from: Path | None = None) -> None:
        """Open the folder.

        Args:
            folder: made with the first checkpoint.
            seat: this worker's place.
            begin_from: another journal's folder, whose checkpoint is gone on from where there is
                none here; it is left as it is.
        """
        self._folder = folder
        self._seat = seat
        self._begin_from = begin_from
        self.reported: list[Mapping[str, float]] = []

    @contextmanager
    def latest(self) -> Iterator[Path | None]:
        """Open it."""
        folders = [self._folder, *([self._begin_from] if self._begin_from else [])]
        yield next((f / _LATEST for f in folders if (f / _LATEST).exists()), None)

    def report(self, metrics: Mapping[str, float], write: Callable[[Path], None] | None) -> None:
        """Keep all workers' parts, or the checkpoint before."""
        self.reported.append(dict(metrics))
        if write is None:
            return
        made = self._folder / f"{len(self.reported):09}"
        made.mkdir(parents=True, exist_ok=True)
        write(made)
        if self._seat.world > 1:
            torch.distributed.barrier()
        if self._seat.rank == 0:
            # A link is replaced in one step; a folder that has something in it is not.
            link = self._folder / f"{_LATEST}.unfinished"
            link.unlink(missing_ok=True)
            link.symlink_to(made.name)
            link.replace(self._folder / _LATEST)
            for older in self._folder.iterdir():
                if older.is_dir() and not older.is_symlink() and older != made:
                    shutil.rmtree(older)


def write_part(folder: Path, state: Mapping[str, Any], seat: Seat) -> None:
    """Write this worker's part of a checkpoint: its random state, and the first one's all else."""
    torch.save(_random_state(seat.device), folder / _random_file(seat.rank))
    if seat.rank == 0:
        torch.save(dict(state), folder / _STATE_FILE)


def read_parts(folder: Path, seat: Seat) -> dict[str, Any]:
    """Give the state that the first worker wrote, and set this worker's random state.

    A worker that had no part, as there are more of them now, keeps the random state it has.
    """
    own = folder / _random_file(seat.rank)
    if own.exists():
        _set_random_state(torch.load(own, weights_only=True), seat.device)
    state: dict[str, Any] = torch.load(folder / _STATE_FILE, weights_only=True, map_location="cpu")
    return state


def seed_everything(seed: int) -> None:
    """Seed torch, numpy and Python: a net of the user's may ask any of them."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def _random_file(rank: int) -> str:
    return f"random-{rank:05}.pt"


def _random_state(device: torch.device) -> dict[str, Any]:
    name, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        # A checkpoint is read back without pickle: tensors and plain numbers only.
        "numpy": (str(name), torch.from_numpy(np.asarray(keys)), position, has_gauss, cached),
        "python": random.getstate(),
    }


def _set_random_state(state: Mapping[str, Any], device: torch.device) -> None:
    torch.set_rng_state(state["torch"])
    if device.type == "cuda" and state["cuda"] is not None:
        torch.cuda.set_rng_state(state["cuda"], device)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy(), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))
