"""Explains a prediction that was given before: by its version, from the features it was made of."""

from datetime import datetime
from typing import Any

import numpy as np
import orjson
import polars as pl

from penstock.data import tables
from penstock.errors import NotFoundError
from penstock.records import Record
from penstock.registry.package import verify
from penstock.serving.explanations import answer
from penstock.serving.log_collection import collect, predictions_table
from penstock.serving.shapley import Explainer
from penstock.settings import Settings


class PastPrediction(Record):
    """One logged prediction."""

    prediction_id: str
    model: str
    version: int
    digest: str
    served_at: datetime
    request: str
    """Its fields, as a JSON object."""
    features: tuple[float | None, ...]
    """In the order of the version's signature; None: missing."""
    score: float


def find_prediction(settings: Settings, use_case: str, prediction_id: str) -> PastPrediction:
    """Look a prediction up in the log; what replicas still hold is collected where need be.

    Raises:
        NotFoundError: it is not there.
        BusyError: another process has been collecting the log for a minute.
    """
    found = _in_table(settings, use_case, prediction_id)
    if found is None:
        collect(settings, use_case)
        found = _in_table(settings, use_case, prediction_id)
    if found is None:
        raise NotFoundError(
            f"the log of {use_case} has no prediction {prediction_id!r}",
            allowed="an id as an answer gives it, with the number of its row: <id>-0",
            next_step="see that serving.log_predictions is on, and that it is this storage's",
        )
    return found


def _in_table(settings: Settings, use_case: str, prediction_id: str) -> PastPrediction | None:
    table = predictions_table(use_case)
    if not tables.exists(settings, table):
        return None
    is_it = pl.col("prediction_id") == prediction_id
    rows = tables.scan(settings, table).filter(is_it).head(1).collect()
    if not rows.height:
        return None
    row = rows.row(0, named=True)
    return PastPrediction(
        prediction_id=prediction_id,
        model=row["model"],
        version=row["model_version"],
        digest=row["model_digest"],
        served_at=row["served_at"],
        request=row["request"],
        features=tuple(row["features"]),
        score=row["score"],
    )


def explain_prediction(settings: Settings, past: PastPrediction) -> dict[str, Any]:
    """Explain it, in this process, by the very version that gave it; that need not be deployed.

    Raises:
        NotFoundError: the version gives no explanations.
        IntegrityError: its package is not what it was.
    """
    folder = settings.models_path / past.model / str(past.version)
    explainer = Explainer(verify(folder, settings, digest=past.digest))
    (explained,) = explainer.explain(np.array([past.features], dtype=np.float64))
    told = {
        "prediction_id": past.prediction_id,
        "served_at": past.served_at.isoformat(),
        "request": orjson.loads(past.request),
    }
    return answer(past.model, past.version, [told | explained], is_exact=explainer.is_exact)
