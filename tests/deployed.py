"""Sealed versions of the small bundle, and deployments of them, without a registry or a Serve."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bundles import write_bundle
from penstock.registry.package import read_bundle, seal
from penstock.registry.versions import ModelVersion, VersionFacts
from penstock.serving.deployments import Deployment
from penstock.settings import Settings


def version(path: Path, number: int = 1, digest: str = "0" * 64) -> ModelVersion:
    """A version whose folder need not be there."""
    facts = VersionFacts(
        digest=digest,
        use_case="reservoir",
        estimator="logistic_regression",
        training_set_id="t",
        metrics={},
        agreement_rows=10_000,
        agreement_max_difference=0.0,
    )
    return ModelVersion(
        name="spills",
        version=number,
        run_id="r",
        path=str(path),
        created=datetime.now(UTC),
        facts=facts,
    )


def sealed(
    settings: Settings,
    number: int,
    *,
    fields: Sequence[dict[str, str]] | None = None,
    **serving: Any,
) -> ModelVersion:
    """Seal a version of `spills`; `fields` are its requests', where they are not the bundle's."""
    bundle = write_bundle(settings.project_root / f"bundle-{number}")
    file = bundle / "signature.json"
    signature = json.loads(file.read_text())
    signature["serving"] |= serving
    if fields is not None:
        signature["request_fields"] = fields
    file.write_text(json.dumps(signature))
    folder = settings.models_path / "spills" / str(number)
    manifest = seal(
        read_bundle(bundle, model="spills"), folder, settings, version=number, card="# card"
    )
    return version(folder, number, manifest.digest)


def deployment(of: ModelVersion, **changes: Any) -> Deployment:
    """What is written down once it answers."""
    made = Deployment(
        model=of.name,
        version=of.version,
        digest=of.digest,
        package_path=of.path,
        code_path="c",
        url="http://127.0.0.1:8000",
        predict_url="http://127.0.0.1:8000/v1/models/spills/predict",
        example="{}",
        deployed_at=datetime.now(UTC),
    )
    return made.model_copy(update=changes)
