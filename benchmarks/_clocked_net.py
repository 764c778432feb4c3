"""A net that notes when each of its epochs began: the same clock for whoever trains it."""

import time
from pathlib import Path

from torch import Tensor, nn


class Clocked(nn.Module):
    def __init__(self, num_features: int, width: int, num_layers: int, num_steps: int, clock: str):
        super().__init__()
        widths = [num_features, *[width] * num_layers]
        layers: list[nn.Module] = []
        for number in range(num_layers):
            layers += [nn.Linear(widths[number], widths[number + 1]), nn.ReLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        self._num_steps, self._clock, self._step = num_steps, clock, 0

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            if self._step % self._num_steps == 0 and self._clock:
                # time.time(): the beginning is told by another process.
                with Path(self._clock).open("a") as file:
                    file.write(f"{time.time()}\n")
            self._step += 1
        outputs: Tensor = self.layers(inputs)
        return outputs
