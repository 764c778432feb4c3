import pytest

from penstock.errors import IntegrityError
from penstock.registry.package import Signature
from penstock.serving.policy import ReplicaPolicy
from penstock.training.declarations import ServingPolicy


def signature(serving: dict[str, object]) -> Signature:
    return Signature(
        model="spills",
        estimator="logistic_regression",
        use_case="reservoir",
        feature_service="reservoir_v1",
        feature_names=("amount",),
        request_fields=(),
        label="SPILLED",
        serving=serving,
    )


def test_what_a_model_declares_is_what_a_replica_acts_on():
    declared = ServingPolicy(max_batch_size=7, max_queued_requests=9, max_rows_per_request=11)
    policy = ReplicaPolicy.of(signature(declared.model_dump(mode="json")))
    shared = ServingPolicy.model_fields.keys() & ReplicaPolicy.model_fields.keys()
    assert {"max_batch_size", "batch_wait_s", "min_replicas", "max_queued_requests"} <= shared
    assert {k: getattr(policy, k) for k in shared} == {k: getattr(declared, k) for k in shared}


def test_the_defaults_are_those_of_the_declaration():
    policy, declared = ReplicaPolicy.of(signature({})), ServingPolicy()
    shared = ServingPolicy.model_fields.keys() & ReplicaPolicy.model_fields.keys()
    assert {k: getattr(policy, k) for k in shared} == {k: getattr(declared, k) for k in shared}


def test_a_signed_policy_that_makes_no_sense_is_refused_with_its_key():
    with pytest.raises(IntegrityError, match="max_batch_size"):
        ReplicaPolicy.of(signature({"max_batch_size": 0}))
