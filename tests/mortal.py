"""A net that notes each step it takes, and dies of `kill -9` at the one it is told."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from penstock.training.declarations import TorchModule

NUM_EPOCHS, NUM_STEPS = 4, 20
"""All epochs together take so many steps."""
ARMED = "armed"
"""While the diary's folder has this file, the net dies at its step, and takes the file along."""


class Mortal(nn.Module):
    def __init__(self, num_features: int, diary: str, dies_at: int = 0, pause_s: float = 0.0):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(num_features, 8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
        )
        self._diary, self._dies_at, self._pause_s = Path(diary), dies_at, pause_s
        self._num_steps = 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self._note()
        outputs: Tensor = self.layers(inputs)
        return outputs

    def _note(self) -> None:
        self._num_steps += 1
        with (self._diary / "steps").open("a") as file:
            file.write(f"{os.getpid()}\n")
        if self._num_steps == self._dies_at and (self._diary / ARMED).exists():
            (self._diary / ARMED).unlink(missing_ok=True)
            os.kill(os.getpid(), signal.SIGKILL)
        # Time for a checkpoint to arrive, as steps of a larger net leave it.
        time.sleep(self._pause_s)


def declare(diary: Path, *, num_workers: int = 1, every: int = 3, **options: float) -> TorchModule:
    """Declare a training of the net, with a checkpoint after every so many steps."""
    return TorchModule(
        module="mortal:Mortal",
        options={"diary": str(diary), **options},
        num_epochs=NUM_EPOCHS,
        batch_size=26,
        learning_rate=0.02,
        num_workers=num_workers,
        use_gpu=False,
        checkpoint_every_steps=every,
    )


def steps_in(diary: Path) -> list[str]:
    """Give the processes that took the steps, in order."""
    file = diary / "steps"
    return file.read_text().split() if file.exists() else []


def rows() -> tuple[Tensor, Tensor]:
    """Give 130 rows of 3 features, five batches, and their labels."""
    inputs = torch.randn(130, 3, generator=torch.Generator().manual_seed(1))
    return inputs, (inputs[:, 0] - inputs[:, 2] > 0.3).to(torch.int8)
