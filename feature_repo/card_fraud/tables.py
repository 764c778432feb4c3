"""The raw tables of card_fraud and what their rows must satisfy."""

import pandera.polars as pa
import polars as pl

from penstock.data.contracts import Table

transactions = Table(
    name="card_fraud.transactions",
    event_time="TX_DATETIME",
    zone="UTC",
    key=("TRANSACTION_ID",),
    partition_by="month",
    schema=pa.DataFrameSchema(
        {
            "TRANSACTION_ID": pa.Column(pl.Int64, pa.Check.ge(0)),
            "TX_DATETIME": pa.Column(pl.Datetime("us", "UTC")),
            "CUSTOMER_ID": pa.Column(pl.Int64, pa.Check.ge(0)),
            "TERMINAL_ID": pa.Column(pl.Int64, pa.Check.ge(0)),
            "TX_AMOUNT": pa.Column(pl.Float64, pa.Check.in_range(0, 1_000_000)),
            "TX_TIME_SECONDS": pa.Column(pl.Int64, pa.Check.ge(0)),
            "TX_TIME_DAYS": pa.Column(pl.Int64, pa.Check.ge(0)),
            "TX_FRAUD": pa.Column(pl.Int64, pa.Check.isin([0, 1])),
            "TX_FRAUD_SCENARIO": pa.Column(pl.Int64, pa.Check.isin([0, 1, 2, 3])),
        }
    ),
)
