"""Fills, scales, encodes and projects features, fitted on the training split only, in float64."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from penstock.errors import TrainingDataError, unknown_name
from penstock.training.preprocessing_declarations import PreprocessingPolicy
from penstock.training.row_blocks import (
    ROWS_PER_BLOCK,
    Moments,
    along,
    each_block,
    lanes,
    moments,
)

Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Projection:
    """Principal components: (columns - centre) @ components."""

    centre: Array
    """[P]"""
    components: Array
    """[P, C], orthonormal columns, the one with the largest variance first."""


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Per feature: a missing value becomes its fill, then (value - mean) / scale; then what else.

    The columns that come out: the features that are no codes, in their order; a flag for each
    flagged one; a column for each code. Or, with a projection, its components.
    """

    means: Array
    """[F]: what is subtracted."""
    scales: Array
    """[F]"""
    fills: Array | None = None
    """[F]; None: the means."""
    flagged: tuple[int, ...] = ()
    """Places of the features whose absence is a column."""
    codes: Mapping[int, Array] = field(default_factory=dict)
    """By the place of a feature that holds codes: those that have a column."""
    projection: Projection | None = None

    @property
    def numeric(self) -> list[int]:
        """Places of the features that are no codes."""
        return [place for place in range(len(self.means)) if place not in self.codes]

    @property
    def filling(self) -> Array:
        """What each feature's missing value becomes."""
        return self.means if self.fills is None else self.fills

    @property
    def num_columns(self) -> int:
        """How many columns come out."""
        if self.projection is not None:
            return int(self.projection.components.shape[1])
        return len(self.numeric) + len(self.flagged) + sum(map(len, self.codes.values()))

    def apply(
        self, features: Array, *, out: npt.NDArray[np.float32] | None = None
    ) -> npt.NDArray[np.float32]:
        """Give the columns that an estimator meets, [n, P], in `out` where that is given.

        The arithmetic is float64 and rounds to float32 once, at the end: the ONNX graph does the
        same, so that a tree meets the same number on both paths. Some rows at a time: what lies
        between stays in the cache.
        """
        into = np.empty((len(features), self.num_columns), np.float32) if out is None else out

        def fill(block: slice) -> None:
            rows = features[block]
            into[block] = self._scaled(rows) if self._is_plain else self._projected(rows)

        each_block(len(features), fill)
        return into

    def apply_over(self, features: Array) -> npt.NDArray[np.float32]:
        """Give what `apply` gives, where there is room for it in the memory of the features.

        Half of the columns' bytes then lie where features were, which are gone: memory that
        nobody has used before is the dearest part of scaling.
        """
        if not self._is_plain:
            return self.apply(features)
        num_rows = len(features)
        into = features.reshape(-1).view(np.float32)[: features.size].reshape(features.shape)

        def fill(block: slice) -> None:
            into[block] = self._scaled(features[block])

        # The columns of rows up to 2 n come to lie where rows up to n were: a turn writes over what
        # the turns before it have read, and over nothing else. The first rows, which have no turn
        # before them, are read as one before any of them is written.
        fill(slice(0, min(ROWS_PER_BLOCK, num_rows)))
        start = ROWS_PER_BLOCK
        while start < num_rows:
            each_block(min(start, num_rows - start), fill, start=start)
            start *= 2
        return into

    @property
    def _is_plain(self) -> bool:
        return not (self.flagged or self.codes or self.projection)

    def _projected(self, features: Array) -> Array:
        columns = self._columns(features)
        if self.projection is None:
            return columns
        return (columns - self.projection.centre) @ self.projection.components

    def _columns(self, features: Array) -> Array:
        scaled = self._scaled(features)
        if not (self.flagged or self.codes):
            return scaled
        missing = np.isnan(features)
        parts = [scaled[:, self.numeric], missing[:, list(self.flagged)].astype(np.float64)]
        for place, codes in self.codes.items():
            parts.append((features[:, [place]] == codes).astype(np.float64))
        return np.hstack(parts)

    def _scaled(self, features: Array) -> Array:
        laid = lanes(features)
        centred = laid - along(laid, self.means)
        where_missing = along(laid, self.filling - self.means)
        np.copyto(centred, where_missing, where=np.isnan(centred))
        np.divide(centred, along(laid, self.scales), out=centred)
        return centred.reshape(-1, features.shape[1])

    def to_json(self) -> dict[str, Any]:
        """Give what JSON can hold; Python's floats survive it exactly."""
        parts: dict[str, Any] = {"means": self.means.tolist(), "scales": self.scales.tolist()}
        if self.fills is not None:
            parts["fills"] = self.fills.tolist()
        if self.flagged:
            parts["flagged"] = list(self.flagged)
        if self.codes:
            parts["codes"] = {str(place): codes.tolist() for place, codes in self.codes.items()}
        if self.projection is not None:
            parts["centre"] = self.projection.centre.tolist()
            parts["components"] = self.projection.components.tolist()
        return parts

    @classmethod
    def from_json(cls, parts: dict[str, Any]) -> "Preprocessing":
        """Read back what `to_json` gave."""
        projection = None
        if "components" in parts:
            projection = Projection(
                centre=_array(parts["centre"]), components=_array(parts["components"])
            )
        return cls(
            means=_array(parts["means"]),
            scales=_array(parts["scales"]),
            fills=_array(parts["fills"]) if "fills" in parts else None,
            flagged=tuple(parts.get("flagged", ())),
            codes={int(place): _array(codes) for place, codes in parts.get("codes", {}).items()},
            projection=projection,
        )


def fit(
    features: Array, *, feature_names: tuple[str, ...], policy: PreprocessingPolicy | None = None
) -> Preprocessing:
    """Take from the training rows what the policy asks for; by default mean and deviation.

    Raises:
        NotFoundError: the policy names a feature that there is not.
        TrainingDataError: a feature is missing in every row, or has an infinite value; or there
            are more components than columns.
    """
    policy = policy or PreprocessingPolicy()
    found = moments(features)
    _check(found, features, feature_names, policy)
    means, scales = _scaling(features, policy, found)
    fills = _fills(features, policy, found)
    places = [feature_names.index(name) for name in policy.categories]
    fitted = Preprocessing(
        means=means,
        scales=scales,
        fills=None if np.array_equal(fills, means) else fills,
        flagged=_lacking(features) if policy.missing_flags else (),
        codes={place: _codes(features[:, place], policy.max_categories) for place in places},
    )
    if policy.num_components is None:
        return fitted
    return Preprocessing(
        means=fitted.means,
        scales=fitted.scales,
        fills=fitted.fills,
        flagged=fitted.flagged,
        codes=fitted.codes,
        projection=_principal(fitted._columns(features), policy.num_components),
    )


def _check(
    found: Moments, features: Array, feature_names: tuple[str, ...], policy: PreprocessingPolicy
) -> None:
    for name in policy.categories:
        if name not in feature_names:
            raise unknown_name("feature", name, feature_names)
    empty = _named(feature_names, found.counts == 0)
    if empty:
        raise TrainingDataError(
            f"missing in every training row: {', '.join(empty)}",
            allowed="at least one value of each feature",
            next_step="materialise that feature, or take it out of the feature service",
        )
    if np.isfinite(found.deviations).all():
        return
    named = _named(feature_names, np.any(np.isinf(features), axis=0))
    if named:
        raise TrainingDataError(
            f"infinite values in {', '.join(named)}", allowed="finite numbers, or null"
        )


def _scaling(features: Array, policy: PreprocessingPolicy, found: Moments) -> tuple[Array, Array]:
    match policy.scaling:
        case "standard":
            offsets, spans = found.means, found.deviations
        case "min_max":
            offsets, spans = np.nanmin(features, axis=0), np.ptp(_filled(features), axis=0)
        case "robust":
            low, offsets, high = np.nanquantile(features, (0.25, 0.5, 0.75), axis=0)
            spans = high - low
        case "none":
            offsets, spans = np.zeros(features.shape[1]), np.ones(features.shape[1])
    # A constant feature has nothing to scale; dividing by 1 leaves it at 0.
    return offsets, np.where(spans > 0, spans, 1.0)


def _fills(features: Array, policy: PreprocessingPolicy, found: Moments) -> Array:
    match policy.imputation:
        case "mean":
            fills = found.means
        case "median":
            fills = np.nanmedian(features, axis=0)
        case "zero":
            fills = np.zeros(features.shape[1])
    return np.asarray(fills)


def _lacking(features: Array) -> tuple[int, ...]:
    return tuple(np.flatnonzero(np.isnan(features).any(axis=0)).tolist())


def _filled(features: Array) -> Array:
    return np.where(np.isnan(features), np.nanmin(features, axis=0), features)


def _codes(column: Array, max_codes: int) -> Array:
    """The most frequent codes, in ascending order; of equally frequent ones the smaller."""
    found, counts = np.unique(column[~np.isnan(column)], return_counts=True)
    return np.sort(found[np.argsort(-counts, kind="stable")[:max_codes]])


def _principal(columns: Array, num_components: int) -> Projection:
    if num_components > columns.shape[1]:
        raise TrainingDataError(
            f"{num_components} principal components of {columns.shape[1]} columns",
            allowed=f"at most {columns.shape[1]}",
            next_step="lower num_components in model.py",
        )
    centre = columns.mean(axis=0)
    centred = columns - centre
    _, vectors = np.linalg.eigh(centred.T @ centred)
    components = vectors[:, ::-1][:, :num_components]
    # A component's sign is free; its largest part is made positive, so that a fit is repeatable.
    largest = components[np.abs(components).argmax(axis=0), np.arange(num_components)]
    return Projection(centre=centre, components=components * np.sign(largest))


def _array(values: Any) -> Array:
    return np.asarray(values, dtype=np.float64)


def _named(feature_names: tuple[str, ...], chosen: npt.NDArray[np.bool_]) -> list[str]:
    return [n for n, is_chosen in zip(feature_names, chosen, strict=True) if is_chosen]
