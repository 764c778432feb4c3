"""How several estimators are declared to answer as one; the fit stands in estimators/."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from penstock.records import Record
from penstock.training.estimator_base import SeededEstimator
from penstock.training.metric_declarations import Task
from penstock.training.preprocessing_declarations import PreprocessingPolicy
from penstock.training.single_estimators import SingleEstimator


class Member(Record):
    """One estimator of an ensemble."""

    estimator: SingleEstimator
    preprocessing: PreprocessingPolicy = PreprocessingPolicy(scaling="none")
    """What becomes of the model's own prepared columns once more, for this member alone."""
    weight: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """Its share in the score, beside the others'."""


class Ensemble(SeededEstimator):
    """The weighted mean of its members' scores."""

    kind: Literal["ensemble"] = "ensemble"
    members: Annotated[tuple[Member, ...], Field(min_length=1)]

    @property
    def task(self) -> Task:
        """What the label has to be."""
        return self.members[0].estimator.task

    @property
    def shares(self) -> tuple[float, ...]:
        """The weights, made to sum to 1."""
        total = sum(member.weight for member in self.members)
        return tuple(member.weight / total for member in self.members)

    @model_validator(mode="after")
    def _check_members(self) -> Self:
        tasks = {member.estimator.task for member in self.members}
        if len(tasks) > 1:
            raise ValueError(f"members of different kinds: {', '.join(sorted(tasks))}")
        return self
