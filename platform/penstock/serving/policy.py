"""How a replica answers, read from what the model's package was signed with."""

from typing import Self

from pydantic import ConfigDict, Field, ValidationError

from penstock.errors import IntegrityError
from penstock.records import Record
from penstock.registry.package import Signature


class ReplicaPolicy(Record):
    """The part of the declared serving policy that a deployment acts on.

    The names are those of the model's declaration, which a replica must not import: it would load
    training.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    min_replicas: int = Field(default=1, ge=1)
    max_replicas: int = Field(default=1, ge=1)
    max_ongoing_requests: int = Field(default=256, ge=1)
    max_queued_requests: int = Field(default=512, ge=1)
    max_batch_size: int = Field(default=256, ge=1)
    batch_wait_s: float = Field(default=0.0, ge=0)
    max_rows_per_request: int = Field(default=1000, ge=1)
    num_full_requests: int = Field(default=8, ge=1)
    """Requests of the largest size whose rows may be in flight at one replica."""

    @classmethod
    def of(cls, signature: Signature) -> Self:
        """Read the policy of a package.

        Raises:
            IntegrityError: what was signed is no policy.
        """
        try:
            return cls.model_validate(signature.serving)
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise IntegrityError(
                f"the package's serving policy does not fit at {key}: {first['msg']}"
            ) from None
