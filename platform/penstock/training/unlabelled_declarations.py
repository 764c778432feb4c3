"""How a use case declares what is fitted without labels; the fits stand in estimators/."""

from typing import ClassVar, Literal

from pydantic import Field

from penstock.training.estimator_base import OneTaskEstimator
from penstock.training.metric_declarations import Task


class IsolationForest(OneTaskEstimator):
    """scikit-learn's: a row's score says how few random cuts set it apart.

    From 0 to 1; around 0.5 nothing is conspicuous, near 1 a row stands alone.
    """

    task: ClassVar[Task] = "unsupervised"
    kind: Literal["isolation_forest"] = "isolation_forest"
    num_trees: int = Field(default=100, ge=1)
    num_rows_per_tree: int = Field(default=256, ge=2)
    """Rows that each tree is grown on, drawn for it; all of them where there are fewer."""


class KMeans(OneTaskEstimator):
    """scikit-learn's: a row's score is its distance from the nearest of the centres.

    In the space that the preprocessing makes: with its default, in standard deviations.
    """

    task: ClassVar[Task] = "unsupervised"
    kind: Literal["k_means"] = "k_means"
    num_clusters: int = Field(default=8, ge=2)
    num_starts: int = Field(default=10, ge=1)
    """Fits from other centres at first; the one with the least squared distances stays."""
    max_iterations: int = Field(default=300, ge=1)
    silhouette_rows: int = Field(default=5_000, ge=3)
    """Training rows, drawn by the seed, that the silhouette and the Davies-Bouldin index look at:
    they compare each row with each other one."""
