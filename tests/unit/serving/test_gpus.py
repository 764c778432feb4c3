import pytest

from penstock.errors import UserError
from penstock.handover import ServingPolicy
from penstock.serving.gpus import check


@pytest.mark.parametrize("wanted", [0.25, 1, 2])
def test_one_node_with_enough_is_enough(wanted: float):
    check("spills", ServingPolicy(num_gpus_per_replica=wanted), [0.0, 2.0])


@pytest.mark.parametrize(
    ("nodes", "has"), [([0.0, 0.0], "no GPU"), ([1.0, 1.0], "at most 1 GPUs on a node")]
)
def test_a_replica_that_fits_on_no_node_is_refused(nodes: list[float], has: str):
    with pytest.raises(
        UserError, match=f"to have 2 GPUs, and this Ray has {has}.*Next: add a node"
    ):
        check("spills", ServingPolicy(num_gpus_per_replica=2), nodes)
