"""A run of card_fraud on made-up payments, fitted without Ray: small, and real all the same."""

import json
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from payments import (
    FIRST_DAY,
    SERVICE,
    TRANSACTIONS,
    USE_CASE,
    commit_payments,
    end_of_day,
    make_payments,
    settings_in,
)
from penstock.cluster.local import state_path
from penstock.settings import Settings

if TYPE_CHECKING:
    from penstock.registry.versions import ModelVersion
    from projects import Project


@dataclass(frozen=True)
class SmallRun:
    """What registration asks of a run."""

    run_id: str
    model: str
    training_set_id: str
    bundle_path: str


def prepare(storage: Path, *, num_payments: int = 3_000) -> Settings:
    """Payments, their feature tables, and Feast's registry."""
    from penstock.features.build import build
    from penstock.features.store import apply

    settings = settings_in(storage)
    commit_payments(settings, make_payments(num_payments))
    build(settings, USE_CASE)
    apply(settings, [USE_CASE])
    return settings


def prepare_on(project: "Project", storage: Path) -> Settings:
    """The same with its features online, on the Ray of another project: the test run's one."""
    from penstock.features.materialize import materialize

    settings = prepare(storage)
    shutil.copy(state_path(project.settings), state_path(settings))
    materialize(settings, USE_CASE, until=end_of_day(60))
    return settings


def train_small(settings: Settings, run_id: str, *, num_days: int = 60) -> SmallRun:
    """Fit a logistic regression on the first days and leave its bundle, as training does."""
    from penstock.features.training_set import build_training_set, read_training_set
    from penstock.training import bundle, preprocessing
    from penstock.training.background import draw_background
    from penstock.training.declarations import LogisticRegression, load_model
    from penstock.training.estimators.scikit import fit_here

    model = load_model(settings, USE_CASE)
    made = build_training_set(
        settings,
        use_case=USE_CASE,
        service=SERVICE,
        label_table=TRANSACTIONS,
        label=model.label,
        start=FIRST_DAY,
        end=end_of_day(num_days),
    )
    rows = read_training_set(made)
    features = rows.select(made.feature_names).cast(float).fill_null(np.nan).to_numpy()
    scaling = preprocessing.fit(features, feature_names=made.feature_names)
    labels = rows[model.label].to_numpy().astype(np.int8)
    fitted = fit_here(LogisticRegression(), scaling.apply(features), labels)
    folder = settings.storage_path / "runs" / run_id / "bundle"
    folder.parent.mkdir(parents=True)
    bundle.write(
        folder,
        preprocessing=scaling,
        fitted=fitted,
        graph=bundle.assemble(scaling, fitted),
        signature={
            "model": model.name,
            "estimator": "logistic_regression",
            "use_case": USE_CASE,
            "feature_service": SERVICE,
            "feature_names": list(made.feature_names),
            "request_fields": [
                {"name": "CUSTOMER_ID", "dtype": "int64"},
                {"name": "TERMINAL_ID", "dtype": "int64"},
                {"name": "TX_DATETIME", "dtype": "timestamp"},
                {"name": "TX_AMOUNT", "dtype": "float64"},
            ],
            "label": model.label,
            "threshold": 0.5,
            "serving": model.serving.model_dump(mode="json"),
        },
        training={
            "run_id": run_id,
            "training_set_id": made.id,
            "table_versions": made.table_versions,
            "metrics": {"average_precision": 0.6, "roc_auc": 0.86},
            "seed": 0,
        },
        background=draw_background(features, feature_names=made.feature_names),
    )
    return SmallRun(run_id, model.name, made.id, str(folder))


def seal_as(settings: Settings, run: SmallRun, model: str, **serving: Any) -> "ModelVersion":
    """Seal the run as version 1 of a model of another name, which the run's one Ray has not yet."""
    from penstock.registry.package import read_bundle, seal
    from penstock.registry.versions import ModelVersion, VersionFacts

    bundle = Path(run.bundle_path)
    signature = json.loads((bundle / "signature.json").read_text())
    signature |= {"model": model}
    signature["serving"] |= serving
    (bundle / "signature.json").write_text(json.dumps(signature))
    folder = settings.models_path / model / "1"
    manifest = seal(read_bundle(bundle, model=model), folder, settings, version=1, card="# Test")
    return ModelVersion(
        name=model,
        version=1,
        run_id=run.run_id,
        path=str(folder),
        created=datetime.now(UTC),
        facts=VersionFacts(
            digest=manifest.digest,
            use_case=USE_CASE,
            estimator="logistic_regression",
            training_set_id=run.training_set_id,
            metrics={},
            agreement_rows=0,
            agreement_max_difference=0.0,
        ),
    )
