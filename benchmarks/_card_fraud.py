"""The benchmarks' input: the published payments and the windows declared for them."""

import sys
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "feature_repo"))

from card_fraud.feature_tables import LABEL_DELAY, WIDTHS, customer_windows, terminal_windows  # noqa: E402  # found on the path that was just set

__all__ = ["CUSTOMER", "LABEL_DELAY", "TERMINAL", "WIDTHS", "read_payments"]
CUSTOMER, TERMINAL = customer_windows.windows, terminal_windows.windows


def read_payments(num_rows: int | None = None) -> pl.DataFrame:
    """All five months in time order, or the first rows of them."""
    files = ROOT.parent / "shared" / "data" / "card_fraud" / "transactions" / "*.parquet"
    payments = pl.read_parquet(files).sort("TRANSACTION_ID")
    return payments if num_rows is None else payments.head(num_rows)
