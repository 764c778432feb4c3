"""The declared features equal what the data set's authors published, row for row."""

from dataclasses import replace
from datetime import timedelta

import polars as pl
import pytest

from card_fraud.feature_tables import customer_windows, terminal_windows
from card_fraud.transforms import payment_features
from penstock.features.windows import compute
from real_data import card_fraud_files, reference_features

TOLERANCE = 1e-6
WINDOWS = (customer_windows.windows, terminal_windows.windows)
NAMES = [
    "TX_DURING_WEEKEND",
    "TX_DURING_NIGHT",
    *(name for windows in WINDOWS for name in windows.feature_names()),
]


@pytest.fixture(scope="module")
def payments() -> pl.DataFrame:
    """April to August: the windows of July look back to it."""
    return pl.read_parquet(card_fraud_files()).sort("TRANSACTION_ID")


@pytest.fixture(scope="module")
def published(payments: pl.DataFrame) -> pl.DataFrame:
    """July and August, without customers that paid twice in one second: order is unknown there."""
    twice = payments.filter(pl.struct("CUSTOMER_ID", "TX_DATETIME").is_duplicated())
    assert twice.height <= 58
    features = pl.read_parquet(reference_features())
    assert features.height == 296_928 + 296_559
    return features.join(twice, on="TRANSACTION_ID", how="anti", maintain_order="left")


def differences(published: pl.DataFrame, ours: pl.DataFrame) -> dict[str, float]:
    """The largest difference of each of our columns from the published one."""
    both = published.join(ours, on="TRANSACTION_ID", how="left", suffix="_ours")
    names = [name for name in ours.columns if name != "TRANSACTION_ID"]
    assert (
        both.select(pl.sum_horizontal(pl.col(f"{n}_ours").null_count() for n in names)).item() == 0
    )
    largest = both.select((pl.col(n) - pl.col(f"{n}_ours")).abs().max().alias(n) for n in names)
    return largest.row(0, named=True)


def test_all_fourteen_derived_features_equal_the_published_ones(payments, published):
    inputs = {name: payments[name].to_numpy() for name in ("TX_DATETIME", "TX_AMOUNT")}
    flags = payment_features(inputs)
    ours = payments.select("TRANSACTION_ID").with_columns(
        pl.Series(name, flags[name]) for name in NAMES[:2]
    )
    for windows in WINDOWS:
        ours = ours.hstack(compute(payments, windows).select(windows.feature_names()))
    found = differences(published, ours)
    assert set(found) == set(NAMES) == set(published.columns) - {"TRANSACTION_ID"}
    assert {name: d for name, d in found.items() if not d <= TOLERANCE} == {}


def test_a_window_that_saw_the_label_too_early_would_not_pass(payments, published):
    early = replace(terminal_windows.windows, delay=timedelta(days=6))
    ours = payments.select("TRANSACTION_ID").hstack(
        compute(payments, early).select(early.feature_names())
    )
    assert min(differences(published, ours).values()) > TOLERANCE
