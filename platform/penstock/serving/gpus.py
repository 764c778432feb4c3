"""Whether the Ray in use has the GPUs that a model's replicas are declared to have.

Without this a deploy would wait minutes for a replica that can be placed nowhere.
"""

from collections.abc import Sequence
from typing import Any

from penstock.errors import UserError
from penstock.handover import ServingPolicy


def check(model: str, policy: ServingPolicy, gpus_of_nodes: Sequence[float]) -> None:
    """Refuse a model that needs a GPU where no node has what one replica takes.

    Raises:
        UserError: says what the nodes have.
    """
    wanted, most = policy.num_gpus_per_replica, max(gpus_of_nodes, default=0.0)
    if wanted > most:
        has = f"at most {most:g} GPUs on a node" if most else "no GPU"
        raise UserError(
            f"a replica of {model} is declared to have {wanted:g} GPUs, and this Ray has {has}",
            next_step="add a node with GPUs; or leave num_gpus_per_replica out of the model's "
            "ServingPolicy, and train again",
        )


def gpus_of_nodes() -> list[float]:
    """How many GPUs each living node of the Ray in use has."""
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray left it so
    return [float(node["Resources"].get("GPU", 0)) for node in nodes if node["Alive"]]
