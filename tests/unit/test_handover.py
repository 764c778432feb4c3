import pytest
from pydantic import ValidationError

from penstock.handover import ServingPolicy


def test_fewer_replicas_at_most_than_at_least_are_refused():
    with pytest.raises(ValidationError, match="max_replicas"):
        ServingPolicy(min_replicas=3, max_replicas=2)
