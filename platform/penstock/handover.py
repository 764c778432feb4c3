"""What training hands on and a replica acts on: a bundle's files, and how its model is served.

It stands below both, because a replica loads nothing of training.
"""

from typing import Annotated, Self

from pydantic import Field, model_validator

from penstock.records import Record

BACKGROUND_FILE = "background.json"
MODEL_FILE = "model.onnx"
NATIVE_FOLDER = "native"
SIGNATURE_FILE = "signature.json"
TRAINING_FILE = "training.json"
QUANTIZATION_FILE = "quantization.json"


class Int8(Record):
    """The dense layers of a net in 8-bit integers, served only where this was measured to pay."""

    max_metric_loss: float = Field(ge=0, allow_inf_nan=False)
    """By how much the model's primary metric may be worse, in the metric's own unit."""
    min_speedup: float = Field(default=1.2, ge=1, allow_inf_nan=False)
    """How many times as fast the graph must be, at each of the batch sizes."""
    batch_sizes: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 256), min_length=1)
    """Rows of a batch whose latency is measured; 1 is a request that is alone."""


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
    upscale_delay_s: float = Field(default=1.0, ge=0, allow_inf_nan=False)
    """How long more replicas must have been called for before they start."""
    downscale_delay_s: float = Field(default=60.0, ge=0, allow_inf_nan=False)
    """How long fewer must have sufficed before one stops."""
    num_cpus_per_replica: float = Field(default=1.0, gt=0)
    num_gpus_per_replica: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Above 0 the graph runs on a GPU, of which a replica gets this share or number."""
    shared: bool = False
    """Serve it from the replicas that many models share: it is loaded when it is asked for, and the
    least recently used leave memory. What is said of replicas here then says nothing."""
    max_requests_in_flight: int = Field(default=768, ge=1)
    """Requests that one replica works on or keeps waiting; one more is answered 503."""
    max_batch_size: int = Field(default=256, ge=1)
    batch_wait_s: float = Field(default=0.0, ge=0)
    max_rows_per_request: int = Field(default=1000, ge=1)
    feature_cache_s: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Rows of the online store stay in a replica's memory for so long; a write drops them."""
    score_cache_rows: int = Field(default=0, ge=0)
    """So many rows of features are kept with their scores: the same ones need no second run."""
    quantization: Int8 | None = None
    """None: the graph is served as it was trained."""
    explanations: bool = False
    """Give each feature's part in a score to who asks; some training rows then go along."""

    @model_validator(mode="after")
    def _check_replicas(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must not be below min_replicas")
        return self

    @model_validator(mode="after")
    def _check_shared(self) -> Self:
        own = {"min_replicas", "max_replicas", "num_cpus_per_replica", "num_gpus_per_replica"}
        given = sorted(
            name
            for name in own
            if getattr(self, name) != type(self).model_fields[name].get_default()
        )
        if self.shared and given:
            raise ValueError(f"a shared model has no replicas of its own: leave out {given[0]}")
        return self

    @model_validator(mode="after")
    def _check_device(self) -> Self:
        if self.num_gpus_per_replica > 1 and self.num_gpus_per_replica % 1:
            raise ValueError("num_gpus_per_replica above 1 must be a whole number: Ray asks for it")
        if self.num_gpus_per_replica and self.quantization is not None:
            raise ValueError(
                "quantization is made for CPUs and measured on one: leave it out, or "
                "num_gpus_per_replica"
            )
        return self
