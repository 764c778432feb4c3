"""What a run writes down for the registry, for a model card, and for whoever makes it again."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from penstock.errors import DeclarationError
from penstock.features.lineage import trace
from penstock.features.online import OnlineReader
from penstock.features.training_set import TrainingSet
from penstock.settings import Settings
from penstock.training.declarations import Model
from penstock.training.estimators.base import Labels, Scores
from penstock.training.folds import FittedFolds
from penstock.training.metrics import calibration_bins
from penstock.training.runs import Run
from penstock.training.slices import measure_slices

_NUM_BINS = 10
_WITH_LABELS = ("binary", "regression")


def training_facts(
    settings: Settings,
    model: Model,
    run: Run,
    folds: FittedFolds,
    *,
    packages: Mapping[str, str],
    baseline: Mapping[str, float],
) -> dict[str, Any]:
    """Give what `training.json` holds: the run, its configuration, and what a card shows of it."""
    slices = measure_slices(
        # What has no labels has no class or number to be measured by.
        model.slices if model.task in _WITH_LABELS else (),
        model.metrics,
        folds.test,
        folds.scores,
        primary_metric=model.primary_metric,
        bootstrap=model.bootstrap,
    )
    lineage = trace(settings, run.table_versions)
    return {
        **run.model_dump(mode="json", exclude={"bundle_path"}),
        "config": model.estimator(run.estimator).model_dump(mode="json"),
        "declaration": declaration(model, run.estimator),
        "split": model.split.model_dump(mode="json"),
        "preprocessing": model.preprocessing.model_dump(mode="json"),
        "packages": dict(packages),
        "calibration": calibration(model, folds.test.labels, folds.scores),
        "slices": [each.model_dump(mode="json") for each in slices],
        "lineage": [each.model_dump(mode="json") for each in lineage],
        **({f"{model.baseline} as it is": dict(baseline)} if baseline else {}),
    }


def declaration(model: Model, estimator: str) -> dict[str, Any]:
    """Give the model as it was declared, with this one estimator: a run is made again from it."""
    only = {
        "estimators": {estimator: model.estimator(estimator)},
        "default_estimator": estimator,
        "search": {},
        "published": (),
        "published_on_folds": (),
    }
    return model.model_copy(update=only).model_dump(mode="json")


def signature(
    settings: Settings, model: Model, estimator: str, training_set: TrainingSet
) -> dict[str, Any]:
    """Give what `signature.json` holds: what the model takes and gives.

    Raises:
        DeclarationError: the feature service is not the one that the training set was built by.
    """
    reader = OnlineReader.open(settings, model.use_case, model.feature_service)
    try:
        served = reader.feature_names
        request_fields = [field.model_dump(mode="json") for field in reader.request_fields]
    finally:
        reader.close()
    if served != training_set.feature_names:
        raise DeclarationError(
            f"the feature service {model.feature_service} has changed since the training set "
            f"{training_set.id[:12]} was built",
            next_step="train again",
        )
    return {
        "model": model.name,
        "estimator": estimator,
        "use_case": model.use_case,
        "feature_service": model.feature_service,
        "feature_names": list(training_set.feature_names),
        "request_fields": request_fields,
        "label": model.label,
        "threshold": model.serving.decision_threshold,
        "serving": model.serving.model_dump(mode="json"),
    }


def calibration(model: Model, labels: Labels, scores: Scores) -> dict[str, list[float]]:
    """Give bins of scores with the mean label of each: of equal width, or rows where numbers.

    Without labels there are none.
    """
    if model.task not in _WITH_LABELS:
        return {}
    if model.task == "binary":
        bins = calibration_bins(labels, scores, num_bins=_NUM_BINS)
        return {
            "mean_scores": bins.mean_scores.tolist(),
            "mean_labels": bins.positive_shares.tolist(),
            "num_rows": bins.counts.tolist(),
        }
    parts = [
        part for part in np.array_split(np.argsort(scores, kind="stable"), _NUM_BINS) if len(part)
    ]
    return {
        "mean_scores": [float(scores[part].mean()) for part in parts],
        "mean_labels": [float(labels[part].mean()) for part in parts],
        "num_rows": [len(part) for part in parts],
    }
