"""The published payments with their published features, and the model declared on them."""

import polars as pl
import pytest

from penstock.settings import Settings
from penstock.training.declarations import load_model
from projects import REPO_ROOT
from real_data import card_fraud_files, reference_features


@pytest.fixture(scope="session")
def card_fraud_model():
    return load_model(Settings(project_root=REPO_ROOT), "card_fraud")


@pytest.fixture(scope="session")
def published_examples():
    """The published features of the payments of July and August, in time order."""
    payments = pl.concat(pl.read_parquet(file) for file in card_fraud_files("2018-07", "2018-08"))
    features = pl.concat(pl.read_parquet(file) for file in reference_features())
    return (
        payments.join(features, on="TRANSACTION_ID")
        .sort("TRANSACTION_ID")
        .with_columns(pl.col("TX_DATETIME").dt.replace_time_zone("UTC"))
    )
