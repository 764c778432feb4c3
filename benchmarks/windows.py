"""Window features: Penstock's one pass beside pandas rolling, in the two ways people write it.

Measured is, for all alike, the way from the payments in memory (each library's own frame) to the
twelve window features of every payment in memory. `pandas groupby` is the faster way that pandas
offers: `groupby(…).rolling(…)` over all entities at once. `pandas apply` is how the Fraud Detection
Handbook writes it: a function a customer and a terminal, `rolling` inside. The values of all
must be equal, but for customers with two payments in one second, where pandas goes by row and
Penstock by time.
"""

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from typing import TypeVar

import numpy as np
import pandas as pd
import polars as pl
from _card_fraud import CUSTOMER, LABEL_DELAY, TERMINAL, WIDTHS, read_payments

from penstock.features.windows import compute

DELAY_DAYS = LABEL_DELAY.days
DAYS = [width.days for width in WIDTHS.values()]
TOLERANCE = 1e-6
_RUNS_PER_TURN = 3
Frame = TypeVar("Frame")


def penstock(payments: pl.DataFrame) -> pl.DataFrame:
    parts = [compute(payments, w).select(w.feature_names()) for w in (CUSTOMER, TERMINAL)]
    return payments.select("TRANSACTION_ID").hstack(parts[0]).hstack(parts[1])


def customer_spending(payments: pd.DataFrame) -> pd.DataFrame:
    payments = payments.sort_values("TX_DATETIME")
    payments.index = payments["TX_DATETIME"]
    for days in DAYS:
        rolling = payments["TX_AMOUNT"].rolling(f"{days}D")
        total, count = rolling.sum(), rolling.count()
        payments[f"CUSTOMER_ID_NB_TX_{days}DAY_WINDOW"] = list(count)
        payments[f"CUSTOMER_ID_AVG_AMOUNT_{days}DAY_WINDOW"] = list(total / count)
    payments.index = payments["TRANSACTION_ID"]
    return payments


def terminal_risk(payments: pd.DataFrame) -> pd.DataFrame:
    payments = payments.sort_values("TX_DATETIME")
    payments.index = payments["TX_DATETIME"]
    recent = payments["TX_FRAUD"].rolling(f"{DELAY_DAYS}D")
    recent_frauds, recent_count = recent.sum(), recent.count()
    for days in DAYS:
        rolling = payments["TX_FRAUD"].rolling(f"{DELAY_DAYS + days}D")
        frauds, count = rolling.sum() - recent_frauds, rolling.count() - recent_count
        payments[f"TERMINAL_ID_NB_TX_{days}DAY_WINDOW"] = list(count)
        payments[f"TERMINAL_ID_RISK_{days}DAY_WINDOW"] = list(frauds / count)
    payments.index = payments["TRANSACTION_ID"]
    return payments.fillna(0)


def pandas_apply(payments: pd.DataFrame) -> pd.DataFrame:
    for key, function in (("CUSTOMER_ID", customer_spending), ("TERMINAL_ID", terminal_risk)):
        payments = payments.groupby(key).apply(function)
        payments = payments.sort_values("TX_DATETIME").reset_index(drop=True)
    return payments


def pandas_groupby(payments: pd.DataFrame) -> pd.DataFrame:
    out = payments.copy()
    for key, column, delay in (("CUSTOMER_ID", "TX_AMOUNT", 0), ("TERMINAL_ID", "TX_FRAUD", 7)):
        ordered = payments.sort_values([key, "TX_DATETIME"], kind="stable")

        def rolled(days: int, frame: pd.DataFrame = ordered, key: str = key, column: str = column):
            rolling = frame.groupby(key).rolling(f"{days}D", on="TX_DATETIME")[column]
            return rolling.sum().to_numpy(), rolling.count().to_numpy()

        before = rolled(delay) if delay else (0.0, 0.0)
        for days in DAYS:
            total, count = (a - b for a, b in zip(rolled(delay + days), before, strict=True))
            mean = np.divide(total, count, out=np.zeros_like(total), where=count > 0)
            what = "RISK" if delay else "AVG_AMOUNT"
            for name, values in ((f"{key}_NB_TX", count), (f"{key}_{what}", mean)):
                out[f"{name}_{days}DAY_WINDOW"] = pd.Series(values, index=ordered.index)
    return out


def measure(run: Callable[[], Frame]) -> tuple[float, Frame]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


def assert_equal(ours: pl.DataFrame, theirs: pd.DataFrame, payments: pl.DataFrame) -> float:
    same_second = payments.filter(pl.struct("CUSTOMER_ID", "TX_DATETIME").is_duplicated())
    kept = ~ours["TRANSACTION_ID"].is_in(same_second["TRANSACTION_ID"].implode())
    theirs = theirs.sort_values("TRANSACTION_ID", ignore_index=True)
    largest = 0.0
    for name in (*CUSTOMER.feature_names(), *TERMINAL.feature_names()):
        difference = np.abs(ours[name].to_numpy() - theirs[name].to_numpy())[kept.to_numpy()]
        largest = max(largest, float(difference.max()))
    assert largest <= TOLERANCE, f"values differ by {largest}"
    return largest


def main() -> None:
    warnings.simplefilter("ignore")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="payments (default: all 1.47 M)")
    parser.add_argument("--repeat", type=int, default=3, help="turns (pandas apply has one)")
    parser.add_argument("--handbook", action="store_true", help="run pandas apply too (minutes)")
    given = parser.parse_args()
    payments = read_payments(given.rows)
    frame = payments.to_pandas()
    peers = {"pandas groupby": pandas_groupby}
    if given.handbook:
        peers["pandas apply"] = pandas_apply
    took_s: dict[str, list[float]] = {name: [] for name in ("penstock", *peers)}
    # In turns, so that whatever else the machine does meets all of them.
    for turn in range(given.repeat):
        # The short one several times: one hiccup of the machine is a large part of it.
        for _ in range(_RUNS_PER_TURN):
            seconds, ours = measure(lambda: penstock(payments))
            took_s["penstock"].append(seconds)
        for name, run in peers.items():
            if name == "pandas apply" and turn > 0:
                continue
            seconds, theirs = measure(lambda run=run: run(frame))
            took_s[name].append(seconds)
            difference = assert_equal(ours, theirs, payments)
            print(f"{name}: equal to penstock, largest difference {difference:.1e}")
    median_s = {name: statistics.median(times) for name, times in took_s.items()}
    print(f"{payments.height:,} payments x 12 window features")
    print(f"{'way':16} {'median s':>9} {'min s':>8} {'max s':>8}")
    for name, times in took_s.items():
        print(f"{name:16} {median_s[name]:9.3f} {min(times):8.3f} {max(times):8.3f}")
    ratios = {
        f"windows_vs_{name.replace(' ', '_')}": round(median_s[name] / median_s["penstock"], 1)
        for name in peers
    }
    medians = {f"{name.replace(' ', '_')}_s": round(s, 3) for name, s in median_s.items()}
    print(json.dumps({**ratios, **medians, "num_rows": payments.height}))


if __name__ == "__main__":
    main()
