"""Fills and scales features, fitted on the training split only, in float64."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import TrainingDataError


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Per feature: a missing value becomes the mean, then (value - mean) / scale."""

    means: npt.NDArray[np.float64]
    scales: npt.NDArray[np.float64]

    def apply(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
        """Give the filled and standardised features, [n, F].

        The arithmetic is float64 and rounds to float32 once, at the end: the ONNX graph does the
        same, so that a tree meets the same number on both paths.
        """
        filled = np.where(np.isnan(features), self.means, features)
        scaled: npt.NDArray[np.float32] = ((filled - self.means) / self.scales).astype(np.float32)
        return scaled

    def to_json(self) -> dict[str, Any]:
        """Give what JSON can hold; Python's floats survive it exactly."""
        return {"means": self.means.tolist(), "scales": self.scales.tolist()}

    @classmethod
    def from_json(cls, parts: dict[str, Any]) -> "Preprocessing":
        """Read back what `to_json` gave."""
        return cls(
            means=np.asarray(parts["means"], dtype=np.float64),
            scales=np.asarray(parts["scales"], dtype=np.float64),
        )


def fit(features: npt.NDArray[np.float64], *, feature_names: tuple[str, ...]) -> Preprocessing:
    """Take each feature's mean and standard deviation over its present values.

    Raises:
        TrainingDataError: a feature is missing in every row, or has an infinite value.
    """
    present = ~np.isnan(features)
    empty = _named(feature_names, ~np.any(present, axis=0, keepdims=True))
    if empty:
        raise TrainingDataError(
            f"missing in every training row: {', '.join(empty)}",
            allowed="at least one value of each feature",
            next_step="materialise that feature, or take it out of the feature service",
        )
    named = _named(feature_names, np.any(np.isinf(features), axis=0, keepdims=True))
    if named:
        raise TrainingDataError(
            f"infinite values in {', '.join(named)}", allowed="finite numbers, or null"
        )
    means = np.nanmean(features, axis=0)
    deviations = np.nanstd(features, axis=0)
    # A constant feature has nothing to scale; dividing by 1 leaves it at 0.
    return Preprocessing(means=means, scales=np.where(deviations > 0, deviations, 1.0))


def _named(feature_names: tuple[str, ...], chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [n for n, is_chosen in zip(feature_names, chosen.reshape(-1), strict=True) if is_chosen]
