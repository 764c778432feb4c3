"""What is written by hand: pandas computes a payment's windows anew, Feast's `push` writes them.

Rows are pushed a hundred payments at a time: one by one, Feast's SQLite store would do little but
commit.
"""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
from _card_fraud import CUSTOMER, LABEL_DELAY, TERMINAL, WIDTHS

LONGEST = max(WIDTHS.values())
PAYMENTS_PER_PUSH = 100


def push_by_hand(folder: Path, history: pl.DataFrame, payments: pl.DataFrame) -> float:
    """Payments a second, each with six features of its customer and six of its terminal."""
    folder.mkdir()
    store = open_store(folder)
    since = history["TX_DATETIME"].max() - LONGEST - LABEL_DELAY
    recent = history.filter(pl.col("TX_DATETIME") > since).to_pandas()
    kept = {
        column: {int(key): rows for key, rows in recent.groupby(column)}
        for column in ("CUSTOMER_ID", "TERMINAL_ID")
    }
    events = payments.to_pandas()
    pushed: dict[str, list[dict[str, Any]]] = {column: [] for column in kept}
    began_s = time.perf_counter()
    for number in range(len(events)):
        event = events.iloc[[number]]
        at = event["TX_DATETIME"].iloc[0]
        for windows, features in ((CUSTOMER, customer_features), (TERMINAL, terminal_features)):
            (column,) = windows.entity
            key = int(event[column].iloc[0])
            before = kept[column].get(key)
            rows = event if before is None else pd.concat([before, event])
            kept[column][key] = rows[rows["TX_DATETIME"] > at - LONGEST - LABEL_DELAY]
            row = {column: key, "event_timestamp": at, **features(kept[column][key], at)}
            pushed[column].append(row)
        if (number + 1) % PAYMENTS_PER_PUSH == 0 or number + 1 == len(events):
            for column, rows_of in pushed.items():
                store.push(f"{column}_push", pd.DataFrame(rows_of))
                rows_of.clear()
    return len(events) / (time.perf_counter() - began_s)


def customer_features(rows: pd.DataFrame, at: pd.Timestamp) -> dict[str, float]:
    found = {}
    for name, width in WIDTHS.items():
        amounts = rows.loc[rows["TX_DATETIME"] > at - width, "TX_AMOUNT"]
        found[f"count_{name}"], found[f"mean_{name}"] = float(len(amounts)), amounts.mean()
    return found


def terminal_features(rows: pd.DataFrame, at: pd.Timestamp) -> dict[str, float]:
    found = {}
    known = rows[rows["TX_DATETIME"] <= at - LABEL_DELAY]
    for name, width in WIDTHS.items():
        frauds = known.loc[known["TX_DATETIME"] > at - LABEL_DELAY - width, "TX_FRAUD"]
        found[f"count_{name}"] = float(len(frauds))
        found[f"share_{name}"] = float(frauds.mean()) if len(frauds) else 0.0
    return found


def open_store(folder: Path) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, PushSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64

    store = FeatureStore(
        config=RepoConfig(
            project="by_hand",
            provider="local",
            repo_path=folder,
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    objects: list[Any] = []
    for column, kind in (("CUSTOMER_ID", "mean"), ("TERMINAL_ID", "share")):
        file = folder / f"{column}.parquet"
        names = [f"{what}_{name}" for name in WIDTHS for what in ("count", kind)]
        nothing = {column: pl.Int64, "event_timestamp": pl.Datetime("us", "UTC")}
        pl.DataFrame(schema=nothing | dict.fromkeys(names, pl.Float64)).write_parquet(file)
        entity = Entity(name=column, join_keys=[column], value_type=ValueType.INT64)
        batch = FileSource(path=str(file), timestamp_field="event_timestamp")
        view = FeatureView(
            name=f"{column}_view",
            entities=[entity],
            schema=[
                Field(name=column, dtype=Int64),
                *(Field(name=n, dtype=Float64) for n in names),
            ],
            source=PushSource(name=f"{column}_push", batch_source=batch),
            ttl=timedelta(days=3650),
        )
        objects += [entity, view]
    store.apply(objects)
    return store
