import pytest
from pydantic import ValidationError

from penstock.handover import Int8, ServingPolicy


def test_fewer_replicas_at_most_than_at_least_are_refused():
    with pytest.raises(ValidationError, match="max_replicas"):
        ServingPolicy(min_replicas=3, max_replicas=2)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ({"num_gpus_per_replica": 1.5}, "whole number"),
        ({"num_gpus_per_replica": 1, "quantization": Int8(max_metric_loss=0)}, "made for CPUs"),
    ],
)
def test_what_no_gpu_can_do_is_refused(policy, why: str):
    with pytest.raises(ValidationError, match=why):
        ServingPolicy(**policy)
