"""Runs of nets on made-up rows, as training leaves them, that declare int8."""

import json
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from penstock.features.training_set import load_training_set, read_training_set
from penstock.handover import Int8
from penstock.registry.package import Bundle, read_bundle
from penstock.settings import Settings
from penstock.training import bundle, kept_rows, preprocessing
from penstock.training.declarations import (
    Estimator,
    GatePolicy,
    Model,
    PreprocessingPolicy,
    ServingPolicy,
    TimeSplit,
    TorchMLP,
)
from penstock.training.estimators import families
from penstock.training.estimators.base import FitJob
from penstock.training.run_record import declaration
from penstock.training.validation import DAY_COLUMN, Examples
from small_model import SmallRun

NAMES = tuple(f"level_{place}" for place in range(12))
WIDE = TorchMLP(hidden_sizes=(512, 512), num_epochs=4, batch_size=500, learning_rate=3e-3)
TINY = TorchMLP(hidden_sizes=(4, 4), num_epochs=1, batch_size=500)


def examples(num_rows: int = 2_000, seed: int = 0) -> Examples:
    """Rows with gaps, whose label follows from the first two features and some noise."""
    random = np.random.default_rng(seed)
    features = random.normal(50.0, 20.0, size=(num_rows, len(NAMES)))
    clear = (features[:, 0] + features[:, 1] - 100) / 20
    labels = (clear + random.normal(0, 0.5, num_rows) > 1).astype(np.int8)
    features[random.random(features.shape) < 0.05] = np.nan
    days = [date(2024, 1, 1 + row * 28 // num_rows) for row in range(num_rows)]
    return Examples(features=features, labels=labels, frame=pl.DataFrame({DAY_COLUMN: days}))


def model_of(estimator: Estimator, int8: Int8 | None) -> Model:
    return Model(
        name="spills",
        label_table="dam.readings",
        label="SPILLED",
        feature_service="dam_v1",
        split=TimeSplit(
            train_start="2024-01-01",
            train_end="2024-02-01",
            test_start="2024-02-01",
            test_end="2024-03-01",
        ),
        estimators={"net": estimator},
        default_estimator="net",
        primary_metric="roc_auc",
        gate=GatePolicy(metric="roc_auc"),
        serving=ServingPolicy(quantization=int8),
    )


def leave_run(
    folder: Path,
    estimator: Estimator,
    int8: Int8 | None,
    *,
    policy: PreprocessingPolicy | None = None,
    more_facts: dict[str, Any] | None = None,
) -> Bundle:
    """Fit the estimator here, and leave its bundle and its test rows as training does."""
    train, test = examples(), examples(3_000, seed=1)
    scaling = preprocessing.fit(train.features, feature_names=NAMES, policy=policy)
    job = FitJob(name="fit", checkpoints=folder)
    fitted = families.fit_here(estimator, scaling.apply(train.features), train.labels, job)
    model = model_of(estimator, int8)
    (folder / "run").mkdir(parents=True)
    bundle.write(
        folder / "run/bundle",
        preprocessing=scaling,
        fitted=fitted,
        graph=bundle.assemble(scaling, fitted),
        signature={
            "model": "spills",
            "estimator": "net",
            "use_case": "dam",
            "feature_service": "dam_v1",
            "feature_names": NAMES,
            "request_fields": [{"name": "STATION", "dtype": "int64"}],
            "label": "SPILLED",
            "threshold": 0.5,
            "serving": model.serving.model_dump(mode="json"),
        },
        training=json.loads(
            json.dumps(
                {
                    "run_id": "run-1",
                    "training_set_id": "5e7" + "0" * 61,
                    "metrics": {"roc_auc": 0.9},
                    "declaration": declaration(model, "net"),
                    **(more_facts or {}),
                },
            )
        ),
    )
    kept_rows.keep(folder / "run", model, test)
    return read_bundle(folder / "run/bundle", model="spills")


def put_net_in_place(settings: Settings, run: SmallRun, estimator: Estimator, int8: Int8) -> None:
    """Make a small run one of a net on the same training set, with test rows, that declares int8."""
    rows = read_training_set(load_training_set(settings, run.training_set_id))
    folder = Path(run.bundle_path)
    signature = json.loads((folder / "signature.json").read_bytes())
    facts = json.loads((folder / "training.json").read_bytes())
    names = tuple(signature["feature_names"])
    features = rows.select(names).cast(float).fill_null(np.nan).to_numpy()
    labels = rows[signature["label"]].to_numpy().astype(np.int8)
    scaling = preprocessing.fit(features, feature_names=names)
    job = FitJob(name="fit", checkpoints=folder)
    fitted = families.fit_here(estimator, scaling.apply(features), labels, job)
    model = model_of(estimator, int8)
    bundle.write(
        folder,
        preprocessing=scaling,
        fitted=fitted,
        graph=bundle.assemble(scaling, fitted),
        signature={**signature, "serving": model.serving.model_dump(mode="json")},
        training={**facts, "declaration": declaration(model, "net")},
    )
    days = pl.DataFrame({DAY_COLUMN: [date(2024, 2, 1)] * len(rows)})
    test = Examples(features=features, labels=labels, frame=days)
    kept_rows.keep(folder.parent, model, test)
