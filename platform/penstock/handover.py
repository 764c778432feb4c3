"""What training hands on and a replica acts on: a bundle's files, and how its model is served.

It stands below both, because a replica loads nothing of training.
"""

from typing import Self

from pydantic import Field, model_validator

from penstock.records import Record

BACKGROUND_FILE = "background.json"
MODEL_FILE = "model.onnx"
NATIVE_FOLDER = "native"
SIGNATURE_FILE = "signature.json"
TRAINING_FILE = "training.json"


class Background(Record):
    """What a score is explained against; `background.json`, where the model gives explanations."""

    feature_names: tuple[str, ...]
    rows: tuple[tuple[float | None, ...], ...] = Field(min_length=1)
    """Features of training rows, drawn at random, as they were before preprocessing."""
    usual: tuple[tuple[float, float] | None, ...]
    """By feature, where 90 % of the training rows lie; None: it was never there."""


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
    explanations: bool = False
    """Give each feature's part in a score to who asks; some training rows then go along."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self
