"""What the declarations of all estimators share."""

from typing import Annotated, Literal

from pydantic import Field

from penstock.records import Declaration
from penstock.training.metric_declarations import Task

ImportPath = Annotated[str, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$")]
"""`package.module:Name`."""
Loss = Literal["log_loss", "squared_error", "absolute_error"]
"""What a fit makes small: log_loss for two classes; for numbers squared_error, which aims at the
mean, or absolute_error, which aims at the median."""


class SeededEstimator(Declaration):
    """Any estimator: what is random in its fit follows from the seed."""

    seed: int = 0


class OneTaskEstimator(SeededEstimator):
    """An estimator that one Ray task fits."""

    num_cpus: int = Field(default=1, ge=1)
    """CPUs, and so threads, of the one Ray task that fits."""


class DistributedEstimator(SeededEstimator):
    """An estimator that Ray Train's workers fit."""

    loss: Loss = "log_loss"
    num_workers: int = Field(default=1, ge=1)
    """Ray Train's workers; each has its share of the rows."""
    num_cpus_per_worker: int = Field(default=1, ge=1)
    """CPUs, and so threads, of one worker."""
    use_gpu: bool | None = None
    """A GPU for each worker: asked for and waited for, or not used; None: where Ray has enough
    now, which an autoscaler that starts GPU nodes on demand is never asked for."""
    max_failures: int = Field(default=2, ge=0)
    """How often a lost worker is replaced and training goes on from its last checkpoint."""

    @property
    def fewest_workers(self) -> int:
        """How many workers it takes to start, and to go on when one is lost."""
        return self.num_workers

    @property
    def task(self) -> Task:
        """What the label has to be."""
        return "binary" if self.loss == "log_loss" else "regression"
