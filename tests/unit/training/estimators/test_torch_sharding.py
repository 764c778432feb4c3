"""A net over two workers, whole on each or shared out, takes the steps of one."""

import os
import socket

import pytest
import torch

from forks import forks
from penstock.training.declarations import TorchMLP
from penstock.training.estimators.torch_build import build
from penstock.training.estimators.torch_checkpoints import FolderJournal
from penstock.training.estimators.torch_loop import train
from penstock.training.estimators.torch_rows import Order, Seat, hold
from penstock.training.torch_declarations import EarlyStopping

generator = torch.Generator().manual_seed(3)
INPUTS = torch.randn(50, 4, generator=generator)
TARGETS = (INPUTS[:, 0] + INPUTS[:, 1] > 0.5).float()


def declare(sharding, num_epochs):
    return TorchMLP(
        hidden_sizes=(8, 8),
        num_epochs=num_epochs,
        # The last batch has one row: one worker has none of it.
        batch_size=7,
        num_workers=2,
        accumulation_steps=2,
        max_gradient_norm=1.0,
        learning_rate=0.02,
        sharding=sharding,
        schedule="constant",
        early_stopping=EarlyStopping(),
    )


def fit(config, folder, seat):
    torch.set_num_threads(1)
    order = Order(num_rows=len(INPUTS), batch_size=config.batch_size)
    return train(
        build(config, num_features=4),
        config,
        hold("on the device", INPUTS, TARGETS, order=order, seat=seat),
        journal=FolderJournal(folder, seat),
        seat=seat,
        validation=(INPUTS, TARGETS),
    )


def work(rank, port, folder, sharding):
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
    seat = Seat(rank=rank, world=2)
    # Twice: the second one goes on from the first one's checkpoint.
    fit(declare(sharding, 1), folder / "checkpoints", seat)
    outcome = fit(declare(sharding, 3), folder / "checkpoints", seat)
    if rank == 0:
        torch.save({"weights": outcome.weights, "history": outcome.history}, folder / "out.pt")
    torch.distributed.destroy_process_group()


# Two processes that import torch: test_distributed.py has two workers in every run.
@pytest.mark.slow
@pytest.mark.parametrize("sharding", ["fsdp2", "ddp"])
def test_with_checkpoints_and_steps_in_parts(tmp_path, sharding):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    workers = [
        forks.Process(target=work, args=(rank, port, tmp_path, sharding)) for rank in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    both = torch.load(tmp_path / "out.pt", weights_only=True)
    alone = fit(declare("ddp", 3), tmp_path / "alone", Seat())
    assert len(both["history"]) == 3
    for ours, theirs in zip(both["history"], alone.history, strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    for name, value in alone.weights.items():
        torch.testing.assert_close(both["weights"][name], value, rtol=1e-3, atol=1e-5)
