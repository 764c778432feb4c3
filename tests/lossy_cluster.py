"""Trains the mortal net on a Ray of its own and loses the node: python lossy_cluster.py OUT DIARY STEP.

The head has no CPUs, so that the worker runs on one of two nodes beside it. That node is killed once
the net has taken so many steps; the other one takes its place.
"""

import sys
import threading
import time
from pathlib import Path

import orjson
import psutil
import ray
from ray.cluster_utils import Cluster
from safetensors.torch import save_file

import mortal
from penstock.training.estimators import torch_nets
from penstock.training.estimators.base import FitJob


def lose(cluster: Cluster, diary: Path, step: int) -> None:
    while len(steps := mortal.steps_in(diary)) < step:
        time.sleep(0.05)
    # A worker is a child of its node's raylet.
    raylet = psutil.Process(int(steps[-1])).ppid()
    (node,) = [
        node
        for node in cluster.worker_nodes
        if node.all_processes["raylet"][0].process.pid == raylet
    ]
    cluster.remove_node(node, allow_graceful=False)
    (diary / "lost").touch()


def main() -> None:
    out, diary, step = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, log_to_driver=False)
    threading.Thread(target=lose, args=(cluster, diary, step), daemon=True).start()
    torch_nets.export = lambda *_, **__: b""  # type: ignore[assignment]  # seconds, for nothing here
    inputs, labels = mortal.rows()
    job = FitJob(
        name="fit", checkpoints=out / "checkpoints", import_folders=(str(Path(__file__).parent),)
    )
    config = mortal.declare(diary, pause_s=0.1)
    fitted = torch_nets.fit(config, inputs.numpy(), labels.numpy(), job)
    weights = fitted.native.net.state_dict()
    save_file({name: value.clone() for name, value in weights.items()}, out / "weights.safetensors")
    (out / "history.json").write_bytes(orjson.dumps(fitted.history))
    ray.shutdown()
    cluster.shutdown()


if __name__ == "__main__":
    main()
