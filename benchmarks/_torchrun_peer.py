"""The peer of `scripts/bench train`: the same loop under torchrun, with a folder for checkpoints.

torchrun --nproc-per-node 2 _torchrun_peer.py CONFIG.json ROWS.npz CHECKPOINTS
"""

import sys
from pathlib import Path

import numpy as np
import torch

from penstock.training.declarations import TorchModule
from penstock.training.estimators.torch_build import build
from penstock.training.estimators.torch_checkpoints import FolderJournal
from penstock.training.estimators.torch_loop import train
from penstock.training.estimators.torch_rows import Order, Seat, hold


def main() -> None:
    config = TorchModule.model_validate_json(Path(sys.argv[1]).read_bytes())
    torch.set_num_threads(config.num_cpus_per_worker)
    torch.use_deterministic_algorithms(mode=True)
    torch.distributed.init_process_group("gloo")
    seat = Seat(rank=torch.distributed.get_rank(), world=torch.distributed.get_world_size())
    # Mapped, not read: the two share the pages, as Ray's workers share an object.
    inputs = torch.from_numpy(np.load(sys.argv[2] + ".inputs.npy", mmap_mode="c"))
    targets = torch.from_numpy(np.load(sys.argv[2] + ".targets.npy").astype(np.float32))
    order = Order(num_rows=len(inputs), batch_size=config.batch_size, seed=config.seed)
    outcome = train(
        build(config, num_features=inputs.shape[1]),
        config,
        hold("on the device", inputs, targets, order=order, seat=seat),
        journal=FolderJournal(Path(sys.argv[3]), seat),
        seat=seat,
    )
    if seat.rank == 0:
        weights = {name: value.numpy() for name, value in outcome.weights.items()}
        np.savez(Path(sys.argv[3]) / "weights.npz", **weights)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
