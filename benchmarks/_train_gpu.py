"""Nets on one device: eager float32 as people write it beside Penstock's loop. Needs torch alone.

scripts/bench train --gpu; or, on a machine that has torch and nothing else of ours:
PYTHONPATH=platform python benchmarks/_train_gpu.py

Every way trains the same feed-forward net, wide enough to fill a GPU, on the same made-up rows by
steps of the same batches. A way's speed is that of its median epoch after the first. Utilisation
is the net's own arithmetic (6 operations a weight and row, forward and back) against what one
large matrix product reaches in the same precision on this device in this run. The share of
time in which the device waits for data comes from the same steps on one batch that is there
already.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from contextlib import nullcontext
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from penstock.training.estimators.torch_loop import train
from penstock.training.estimators.torch_placement import Memory, place_rows
from penstock.training.estimators.torch_rows import Batch, Order, Rows, Seat, hold

# The fields of the declaration that the loop reads; the real one needs pydantic.
PLAIN = {
    "loss": "log_loss",
    "seed": 0,
    "accumulation_steps": 1,
    "optimizer": "adam",
    "learning_rate": 1e-3,
    "schedule": "constant",
    "warmup_share": None,
    "weight_decay": 0.0,
    "max_gradient_norm": None,
    "stages": (),
    "sharding": "ddp",
    "early_stopping": None,
    "focal_gamma": None,
    "checkpoint_every_steps": 1 << 60,
}
WAYS = {
    "float32": {"precision": "float32", "compile": False},
    "tf32": {"precision": "tf32", "compile": False},
    "bfloat16": {"precision": "bfloat16", "compile": False},
    "bfloat16, compiled": {"precision": "bfloat16", "compile": True},
}


class Clock:
    """A journal that keeps nothing but the time at which each epoch ended."""

    def __init__(self) -> None:
        self.ends_s: list[float] = []

    def latest(self) -> nullcontext[None]:
        return nullcontext(None)

    def report(self, metrics: dict[str, float], write: object) -> None:
        self.ends_s.append(time.perf_counter())

    @property
    def epoch_s(self) -> float:
        """The median epoch after the first, which warms up."""
        return statistics.median(b - a for a, b in itertools.pairwise(self.ends_s))


class OneBatch:
    """Rows that are there already: one batch, again and again."""

    def __init__(self, rows: Rows) -> None:
        self._batch: Batch = next(iter(rows.batches(0, 0)))
        self.num_rows, self.num_steps = rows.num_rows, rows.num_steps
        self.batch_size = rows.batch_size

    def batches(self, epoch: int, first_step: int):
        for _ in range(first_step, self.num_steps):
            yield self._batch

    def numbers(self, epoch: int, step: int) -> None:
        return None


def make_net(given: argparse.Namespace) -> nn.Module:
    torch.manual_seed(0)
    widths = [given.features, *[given.width] * given.layers]
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 1))


def make_rows(given: argparse.Namespace) -> tuple[Tensor, Tensor]:
    inputs = torch.randn(given.rows, given.features)
    return inputs, (inputs[:, 0] + inputs[:, 1] > 0.5).float()


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def eager(
    given: argparse.Namespace, inputs: Tensor, targets: Tensor, device: torch.device
) -> tuple[float, float]:
    """Give seconds of an epoch and the last loss of a loop as it is usually written."""
    torch.set_float32_matmul_precision("highest")
    net = make_net(given).to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=PLAIN["learning_rate"])
    ends_s = []
    order = Order(num_rows=given.rows, batch_size=given.batch)
    for epoch in range(given.epochs):
        total = torch.zeros((), device=device)
        for own in order.epoch(epoch).split(given.batch):
            x, y = inputs[own].to(device), targets[own].to(device)
            optimizer.zero_grad()
            loss = nn.functional.binary_cross_entropy_with_logits(net(x).reshape(-1), y)
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(own)
        last = float(total) / given.rows
        synchronize(device)
        ends_s.append(time.perf_counter())
    return statistics.median(b - a for a, b in itertools.pairwise(ends_s)), last


def ours(given: argparse.Namespace, rows: Rows, seat: Seat, way: dict[str, object]) -> Clock:
    clock = Clock()
    config = SimpleNamespace(
        **PLAIN, **way, num_epochs=given.epochs, batch_size=given.batch, use_gpu=None
    )
    outcome = train(make_net(given), config, rows, journal=clock, seat=seat)
    assert outcome.divergence is None, outcome.divergence
    clock.last_loss = outcome.history[-1]["train_loss"]
    return clock


def best_product_flops(device: torch.device, precision: str, size: int) -> float:
    """Give the operations a second of one large matrix product on random numbers."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    dtype = torch.bfloat16 if precision.startswith("bfloat16") else torch.float32
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    best_s = float("inf")
    for _ in range(8):
        synchronize(device)
        start = time.perf_counter()
        for _ in range(4):
            left @ right
        synchronize(device)
        best_s = min(best_s, (time.perf_counter() - start) / 4)
    return 2 * size**3 / best_s


def measure(given: argparse.Namespace, device: torch.device) -> dict[str, dict[str, float]]:
    inputs, targets = make_rows(given)
    seat = Seat(device=device)
    order = Order(num_rows=given.rows, batch_size=given.batch)
    placed = place_rows(given.rows, given.features, memory_of(device))
    print(f"rows lie {placed.where}: {placed.reason}")
    on_device = hold(placed.where, inputs, targets, order=order, seat=seat)
    from_host = hold("in host memory", inputs, targets, order=order, seat=seat)
    flops_a_row = 6 * sum(
        layer.weight.numel() for layer in make_net(given) if hasattr(layer, "weight")
    )
    products = {
        p: best_product_flops(device, p, given.product) for p in ("float32", "tf32", "bfloat16")
    }
    found: dict[str, dict[str, float]] = {}

    def note(name: str, epoch_s: float, still_s: float, loss: float, precision: str) -> None:
        rate = given.rows / epoch_s
        found[name] = {
            "samples_per_s": round(rate),
            "tflops": round(rate * flops_a_row / 1e12, 3),
            "utilisation": round(rate * flops_a_row / products[precision], 3),
            "waits_for_data": round(max(0.0, 1 - still_s / epoch_s), 3),
            "last_loss": round(loss, 4),
        }

    eager_s, loss = eager(given, inputs, targets, device)
    still = ours(given, OneBatch(on_device), seat, WAYS["float32"])
    note("eager float32, by hand", eager_s, still.epoch_s, loss, "float32")
    for name, way in WAYS.items():
        if way["compile"] and given.no_compile:
            continue
        still = ours(given, OneBatch(on_device), seat, way)
        for where, rows in (("rows on device", on_device), ("rows in host memory", from_host)):
            clock = ours(given, rows, seat, way)
            note(
                f"{name}, {where}", clock.epoch_s, still.epoch_s, clock.last_loss, way["precision"]
            )
    return found


def memory_of(device: torch.device) -> Memory:
    if device.type != "cuda":
        return Memory(device="cpu", device_bytes=1 << 30)
    return Memory(
        device=torch.cuda.get_device_name(device), device_bytes=torch.cuda.mem_get_info(device)[0]
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cuda", help="cpu: only to try the script")
    parser.add_argument("--rows", type=int, default=1 << 20)
    parser.add_argument("--features", type=int, default=256)
    parser.add_argument("--width", type=int, default=8192)
    parser.add_argument("--layers", type=int, default=4, help="hidden ones")
    parser.add_argument("--batch", type=int, default=16384)
    parser.add_argument("--epochs", type=int, default=4, help="the first one warms up")
    parser.add_argument("--product", type=int, default=8192, help="side of the matrix product")
    parser.add_argument("--no-compile", action="store_true")
    given = parser.parse_args(arguments)
    device = torch.device(given.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        print("there is no GPU here: nothing was measured", file=sys.stderr)
        sys.exit(2)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}: {given.layers} layers of {given.width}")
    found = measure(given, device)
    width = max(map(len, found))
    print(
        f"{'way':{width}} {'samples/s':>12} {'TFLOP/s':>9} {'of best':>8} {'waits':>6} {'loss':>7}"
    )
    for way, row in found.items():
        print(
            f"{way:{width}} {row['samples_per_s']:12,} {row['tflops']:9.3f} "
            f"{row['utilisation']:8.1%} {row['waits_for_data']:6.1%} {row['last_loss']:7.4f}"
        )
    by_hand, *others = found.values()
    best = max(row["samples_per_s"] for row in others)
    ratio = round(best / by_hand["samples_per_s"], 2)
    print(json.dumps({"device": name, "train_gpu_vs_eager": ratio, "ways": found}))


if __name__ == "__main__":
    main()
