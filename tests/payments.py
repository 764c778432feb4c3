"""A small card_fraud of made-up payments in a storage of its own, for tests of the features."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from penstock.data import tables
from penstock.settings import Settings
from real_data import REPO_ROOT

USE_CASE = "card_fraud"
SERVICE = "card_fraud_v1"
TRANSACTIONS = "card_fraud.transactions"
FIRST_DAY = datetime(2024, 3, 1, tzinfo=UTC)
NUM_DAYS = 60


def settings_in(storage: Path, **feature_store: str) -> Settings:
    return Settings.model_validate(
        {
            "project_root": REPO_ROOT,
            "storage": {"root": str(storage)},
            "feature_store": feature_store,
        }
    )


def make_payments(num_payments: int = 3_000, *, seed: int = 1) -> pl.DataFrame:
    """Payments of 40 customers at 60 terminals over 60 days, no two in the same second."""
    random = np.random.default_rng(seed)
    seconds = np.sort(random.choice(NUM_DAYS * 86_400, num_payments, replace=False))
    return pl.DataFrame(
        {
            "TRANSACTION_ID": np.arange(num_payments),
            "TX_DATETIME": pl.Series(seconds * 1_000_000 + int(FIRST_DAY.timestamp()) * 1_000_000)
            .cast(pl.Datetime("us"))
            .dt.replace_time_zone("UTC"),
            "CUSTOMER_ID": random.integers(0, 40, num_payments),
            "TERMINAL_ID": random.integers(0, 60, num_payments),
            "TX_AMOUNT": random.gamma(2.0, 30.0, num_payments).round(2),
            "TX_TIME_SECONDS": seconds,
            "TX_TIME_DAYS": seconds // 86_400,
            "TX_FRAUD": (random.random(num_payments) < 0.05).astype(np.int64),
            "TX_FRAUD_SCENARIO": np.zeros(num_payments, dtype=np.int64),
        }
    )


def payments_before_the_test() -> pl.DataFrame:
    """Sixty days that end with the declared model's test; only the amount decides on fraud."""
    return make_payments(4_000).with_columns(
        TX_DATETIME=pl.col("TX_DATETIME") - (FIRST_DAY - datetime(2018, 6, 16, tzinfo=UTC)),
        TX_FRAUD=(pl.col("TX_AMOUNT") > 120).cast(pl.Int64),
    )


def commit_payments(settings: Settings, payments: pl.DataFrame) -> None:
    tables.commit(
        settings,
        TRANSACTIONS,
        payments,
        mode="append",
        partition_by="month",
        event_time="TX_DATETIME",
    )


def end_of_day(day: int) -> datetime:
    return FIRST_DAY + timedelta(days=day + 1)


def build_features(settings: Settings, num_payments: int = 600) -> Settings:
    """Bring payments into the storage, build their features and declare them to Feast."""
    from penstock.features.build import build
    from penstock.features.store import apply

    commit_payments(settings, make_payments(num_payments))
    build(settings, USE_CASE)
    apply(settings, [USE_CASE])
    return settings
