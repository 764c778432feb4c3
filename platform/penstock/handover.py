"""What training hands on and a replica acts on: a bundle's files, and how its model is served.

It stands below both, because a replica loads nothing of training.
"""

from typing import Self

from pydantic import Field, model_validator

from penstock.records import Record

MODEL_FILE = "model.onnx"
NATIVE_FOLDER = "native"
SIGNATURE_FILE = "signature.json"
TRAINING_FILE = "training.json"


class ServingPolicy(Record):
    """How a deployment of the model answers; signed with each version."""

    decision_threshold: float | None = Field(default=None, allow_inf_nan=False)
    """A score from here on is a positive; None: an answer is a score and no decision."""
    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    target_ongoing_requests: int = Field(default=64, ge=1)
    """Requests in flight per replica that scaling between the two aims at."""
    num_cpus_per_replica: float = Field(default=1.0, gt=0)
    max_requests_in_flight: int = Field(default=768, ge=1)
    """Requests that one replica works on or keeps waiting; one more is answered 503."""
    max_batch_size: int = Field(default=256, ge=1)
    batch_wait_s: float = Field(default=0.0, ge=0)
    max_rows_per_request: int = Field(default=1000, ge=1)
    feature_cache_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Rows of the online store stay in a replica's memory for so long; a write drops them."""
    score_cache_rows: int = Field(default=0, ge=0)
    """So many rows of features are kept with their scores: the same ones need no second run."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self
