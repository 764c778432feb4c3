"""The benchmarks' input: the published payments and the windows of their published protocol."""

from datetime import timedelta
from pathlib import Path

import polars as pl

from penstock.features.windows import Aggregation, Windows

DATA = Path(__file__).resolve().parent.parent.parent / "shared" / "data" / "card_fraud"
WIDTHS = {"1DAY": timedelta(days=1), "7DAY": timedelta(days=7), "30DAY": timedelta(days=30)}
CUSTOMER = Windows(
    entity=("CUSTOMER_ID",),
    event_time="TX_DATETIME",
    widths=WIDTHS,
    aggregations=(
        Aggregation(kind="count", name="CUSTOMER_ID_NB_TX_{window}_WINDOW"),
        Aggregation(kind="mean", column="TX_AMOUNT", name="CUSTOMER_ID_AVG_AMOUNT_{window}_WINDOW"),
    ),
)
TERMINAL = Windows(
    entity=("TERMINAL_ID",),
    event_time="TX_DATETIME",
    widths=WIDTHS,
    delay=timedelta(days=7),
    aggregations=(
        Aggregation(kind="count", name="TERMINAL_ID_NB_TX_{window}_WINDOW"),
        Aggregation(kind="share", column="TX_FRAUD", name="TERMINAL_ID_RISK_{window}_WINDOW"),
    ),
)


def read_payments(num_rows: int | None = None) -> pl.DataFrame:
    """All five months in time order, or the first rows of them."""
    payments = pl.read_parquet(DATA / "transactions" / "*.parquet").sort("TRANSACTION_ID")
    return payments if num_rows is None else payments.head(num_rows)
