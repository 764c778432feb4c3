"""A registered model and logged predictions of it, without a training or a replica."""

import asyncio
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import orjson
import polars as pl

from bundles import write_bundle
from payments import USE_CASE, settings_in
from penstock.data import tables
from penstock.registry.package import read_bundle, seal
from penstock.serving import http
from penstock.serving.feedback import PATH, FeedbackIntake
from penstock.serving.log_collection import SERVED_AT, predictions_table
from penstock.settings import Settings

MODEL = "card_fraud"
JSON = (b"content-type", b"application/json")
AS_OF = datetime(2024, 5, 1, 12, tzinfo=UTC)
FIELDS = [
    {"name": "CUSTOMER_ID", "dtype": "int64"},
    {"name": "CITY", "dtype": "string"},
    {"name": "IS_NEW", "dtype": "bool"},
    {"name": "TX_DATETIME", "dtype": "timestamp"},
    {"name": "TX_AMOUNT", "dtype": "float64"},
]


def registered(storage: Path, *, number: int = 1, use_case: str = USE_CASE) -> Settings:
    """A storage with a signed version of the model."""
    settings = settings_in(storage)
    bundle = write_bundle(storage / f"bundle-{number}", model=MODEL)
    file = bundle / "signature.json"
    signature = json.loads(file.read_text()) | {"use_case": use_case, "request_fields": FIELDS}
    file.write_text(json.dumps(signature))
    folder = settings.models_path / MODEL / str(number)
    seal(read_bundle(bundle, model=MODEL), folder, settings, version=number, card="# card")
    return settings


def predictions(*rows: tuple[str, dict[str, Any], datetime]) -> pl.DataFrame:
    """Prediction id, request and time that it asked about: the columns that truths are joined by."""
    return pl.DataFrame(
        {
            "prediction_id": [row[0] for row in rows],
            "request": [orjson.dumps(row[1]).decode() for row in rows],
            "as_of": [row[2] for row in rows],
            SERVED_AT: [row[2] for row in rows],
            "score": [0.5] * len(rows),
        },
        schema_overrides={
            name: pl.Datetime("us", "UTC") for name in ("as_of", SERVED_AT)
        },
    )  # fmt: skip


def commit_predictions(settings: Settings, *rows: tuple[str, dict[str, Any], datetime]) -> None:
    tables.commit(
        settings,
        predictions_table(USE_CASE),
        predictions(*rows),
        mode="append",
        partition_by="day",
        event_time=SERVED_AT,
    )


def post(
    intake: FeedbackIntake,
    *bodies: Any,
    headers: tuple[tuple[bytes, bytes], ...] = (JSON,),
    method: str = "POST",
    key_id: str | None = None,
) -> list[http.Answer]:
    """Send bodies at the same time, as a server's clients do."""

    async def send_one(body: Any) -> http.Answer:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        scope = {
            "method": method,
            "path": PATH,
            "headers": [(b"host", b"localhost"), *headers],
        }

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": raw, "more_body": False}

        return await http.answer_safely(
            lambda scope, receive: intake.answer(scope, receive, key_id), scope, receive
        )

    async def send_all() -> list[http.Answer]:
        return await asyncio.gather(*(send_one(body) for body in bodies))

    return asyncio.run(send_all())


def about(*prediction_ids: str, truth: float = 1) -> dict[str, Any]:
    """A body that tells the truth about predictions by their ids."""
    items = [{"prediction_id": each, "truth": truth} for each in prediction_ids]
    return {"model": MODEL, "feedback": items}


def kept(settings: Settings) -> Sequence[dict[str, Any]]:
    """The rows of the table of feedback; none where there is no table."""
    if not tables.exists(settings, f"{USE_CASE}.feedback"):
        return []
    rows = tables.scan(settings, f"{USE_CASE}.feedback")
    return rows.sort("received_at", "prediction_id").collect().to_dicts()
