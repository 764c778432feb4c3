"""Simulated card payments for those who have no data.

Written after the published description of the transaction simulator in "Reproducible Machine
Learning for Credit Card Fraud Detection - Practical Handbook" (Machine Learning Group, ULB), with
our own code: whole arrays instead of a loop over customers and days, and so other random numbers.
"""

from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl

from penstock.errors import UserError
from penstock.progress import Progress, silent

START = datetime(2018, 4, 1)  # the published data set has local times without zone
PLANE_SIDE = 100.0
REACH = 5.0
MEAN_AMOUNTS = (5.0, 100.0)
MAX_PAYMENTS_A_DAY = 4.0
DAY_S = 86_400
NOON_SD_S = 20_000.0
LARGE_AMOUNT = 220.0
TERMINALS_A_DAY, TERMINAL_DAYS = 2, 28
CUSTOMERS_A_DAY, CUSTOMER_DAYS, LEAKED_SHARE, LEAKED_FACTOR = 3, 14, 3, 5.0
_CHUNK_CUSTOMERS = 500


def simulate(
    out: Path,
    *,
    seed: int,
    num_customers: int = 5000,
    num_terminals: int = 10_000,
    num_days: int = 183,
    progress: Progress = silent,
) -> list[Path]:
    """Write one Parquet file a month to `out`, with the columns of the published data.

    The same arguments give the same payments. A customer with no terminal within reach pays
    nothing, so few terminals mean few payments.
    """
    rng = np.random.default_rng(seed)
    progress("place customers and terminals", 0, 1, unit="steps")
    payments = _payments(rng, num_customers, num_terminals, num_days)
    progress("simulate payments", payments.height, payments.height)
    payments = _add_frauds(payments, rng, num_customers, num_terminals, num_days)
    if payments.is_empty():
        raise UserError(
            f"no payment came of {num_customers} customers, {num_terminals} terminals and "
            f"{num_days} days",
            next_step="ask for more of them: a customer reaches terminals within "
            f"{REACH:g} on a plane of {PLANE_SIDE:g} x {PLANE_SIDE:g}",
        )
    out.mkdir(parents=True, exist_ok=True)
    files = []
    num_written = 0
    by_month = payments.group_by(
        pl.col("TX_DATETIME").dt.strftime("%Y-%m").alias("month"), maintain_order=True
    )
    for (month,), part in by_month:
        path = out / f"{month}.parquet"
        partial = path.with_suffix(".partial")
        part.drop("month", strict=False).write_parquet(partial)
        partial.replace(path)
        files.append(path)
        num_written += part.height
        progress("write", num_written, payments.height)
    return files


def _terminals_within_reach(
    customers: np.ndarray, terminals: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The terminals of each customer one after the other, and where each customer's begin."""
    found, counts = [], [np.zeros(1, dtype=np.int64)]
    for start in range(0, len(customers), _CHUNK_CUSTOMERS):
        some = customers[start : start + _CHUNK_CUSTOMERS]
        squared = (some[:, :1] - terminals[:, 0]) ** 2 + (some[:, 1:] - terminals[:, 1]) ** 2
        near = squared < REACH**2
        found.append(np.nonzero(near)[1])
        counts.append(near.sum(axis=1))
    return np.concatenate(found), np.cumsum(np.concatenate(counts))


def _payments(
    rng: np.random.Generator, num_customers: int, num_terminals: int, num_days: int
) -> pl.DataFrame:
    customers = rng.uniform(0, PLANE_SIDE, (num_customers, 2))
    means = rng.uniform(*MEAN_AMOUNTS, num_customers)
    payments_a_day = rng.uniform(0, MAX_PAYMENTS_A_DAY, num_customers)
    terminals = rng.uniform(0, PLANE_SIDE, (num_terminals, 2))
    reachable, begins = _terminals_within_reach(customers, terminals)

    counts = rng.poisson(payments_a_day[:, None], (num_customers, num_days))
    customer = np.repeat(np.arange(num_customers), counts.sum(axis=1))
    day = np.repeat(np.tile(np.arange(num_days), num_customers), counts.ravel())
    second = rng.normal(DAY_S / 2, NOON_SD_S, len(customer)).astype(np.int64)
    num_choices = np.diff(begins)
    kept = (second > 0) & (second < DAY_S) & (num_choices[customer] > 0)
    customer, day, second = customer[kept], day[kept], second[kept]

    mean = means[customer]
    amount = rng.normal(mean, mean / 2)
    amount = np.where(amount < 0, rng.uniform(0, 2 * mean), amount)
    terminal = reachable[begins[customer] + rng.integers(0, num_choices[customer])]

    seconds = day * DAY_S + second
    order = np.argsort(seconds, kind="stable")
    start_us = int((START - datetime(1970, 1, 1)) / timedelta(microseconds=1))  # both without zone
    return pl.DataFrame(
        {
            "TRANSACTION_ID": np.arange(len(order)),
            "TX_DATETIME": pl.Series(start_us + seconds[order] * 1_000_000).cast(pl.Datetime("us")),
            "CUSTOMER_ID": customer[order],
            "TERMINAL_ID": terminal[order],
            "TX_AMOUNT": np.round(amount[order], 2),
            "TX_TIME_SECONDS": seconds[order],
            "TX_TIME_DAYS": day[order],
        }
    )


def _add_frauds(
    payments: pl.DataFrame,
    rng: np.random.Generator,
    num_customers: int,
    num_terminals: int,
    num_days: int,
) -> pl.DataFrame:
    """Add amounts, labels and scenarios; where several apply, the last one names the scenario."""
    amount = payments["TX_AMOUNT"].to_numpy().copy()
    day = payments["TX_TIME_DAYS"].to_numpy()
    customer = payments["CUSTOMER_ID"].to_numpy()
    scenario = np.where(amount > LARGE_AMOUNT, 1, 0)

    compromised = np.zeros((num_terminals, num_days), dtype=bool)
    for first_day in range(num_days):
        chosen = rng.choice(num_terminals, min(TERMINALS_A_DAY, num_terminals), replace=False)
        compromised[chosen, first_day : first_day + TERMINAL_DAYS] = True
    scenario[compromised[payments["TERMINAL_ID"].to_numpy(), day]] = 2

    # Stable, so that each customer's payments stay in time order.
    by_customer = np.argsort(customer, kind="stable")
    begins = np.searchsorted(customer[by_customer], np.arange(num_customers + 1))
    for first_day in range(num_days):
        chosen = rng.choice(num_customers, min(CUSTOMERS_A_DAY, num_customers), replace=False)
        for leaked in chosen:
            own = by_customer[begins[leaked] : begins[leaked + 1]]
            low, high = np.searchsorted(day[own], [first_day, first_day + CUSTOMER_DAYS])
            num_stolen = (high - low) // LEAKED_SHARE
            stolen = rng.choice(own[low:high], num_stolen, replace=False)
            amount[stolen] *= LEAKED_FACTOR
            scenario[stolen] = 3
    return payments.with_columns(
        TX_AMOUNT=np.round(amount, 2),
        TX_FRAUD=pl.Series((scenario > 0).astype(np.int64)),
        TX_FRAUD_SCENARIO=pl.Series(scenario.astype(np.int64)),
    )
