"""Takes Feast's own template repo through what a user does with it, and keeps every answer.

python feast_template.py init NAME        what `feast init NAME` does
python feast_template.py walk REPO OUT    `feast apply` there, and then its answers
"""

import json
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import polars as pl
from feast import FeatureStore
from feast.repo_config import load_repo_config
from feast.repo_operations import apply_total, init_repo

FEATURES = [
    "driver_hourly_stats:conv_rate",
    "driver_hourly_stats:acc_rate",
    "driver_hourly_stats:avg_daily_trips",
    "transformed_conv_rate:conv_rate_plus_val1",
    "transformed_conv_rate:conv_rate_plus_val2",
]
NUMBERS = [name.partition(":")[2] for name in FEATURES]


def walk(repo: Path, out: Path) -> None:
    """Apply, historical features, materialize, online features."""
    # What Feast's commands of these names call; each would be a process that imports Feast.
    apply_total(load_repo_config(repo, repo / "feature_store.yaml"), repo, False)
    stats = pd.read_parquet(repo / "data" / "driver_stats.parquet")
    newest = stats["event_timestamp"].max()
    store = FeatureStore(repo_path=str(repo))
    labels = labels_of(stats)
    job = store.get_historical_features(labels, features=FEATURES)
    rows = pl.from_pandas(job.to_df()).select("label", *NUMBERS)
    rows.with_columns(pl.col(NUMBERS).cast(pl.Float64)).write_parquet(out / "historical.parquet")

    store.materialize(stats["event_timestamp"].min(), newest + timedelta(hours=1))
    entities = [
        {"driver_id": int(driver), "val_to_add": 1000, "val_to_add_2": 2000}
        for driver in (*sorted(stats["driver_id"].unique()), 9)
    ]
    online = store.get_online_features(features=FEATURES, entity_rows=entities).to_dict()
    (out / "online.json").write_text(json.dumps({name: online[name] for name in NUMBERS}))


def labels_of(stats: pd.DataFrame) -> pd.DataFrame:
    """Labels around the readings: at one, between two, before all, long after, of nobody."""
    moments = sorted(stats["event_timestamp"].unique())
    times = [
        moments[0] - pd.Timedelta(hours=1),
        *moments[:: max(1, len(moments) // 20)],
        moments[len(moments) // 2] + pd.Timedelta(minutes=17),
        moments[-1] + pd.Timedelta(hours=23),
        moments[-1] + pd.Timedelta(days=2),
    ]
    drivers = [*sorted(stats["driver_id"].unique()), 9]
    rows = [(driver, time) for time in times for driver in drivers]
    labels = pd.DataFrame(rows, columns=["driver_id", "event_timestamp"])
    return labels.assign(label=range(len(labels)), val_to_add=1, val_to_add_2=2)


if __name__ == "__main__":
    if sys.argv[1] == "init":
        init_repo(sys.argv[2], "local")
    else:
        walk(Path(sys.argv[2]), Path(sys.argv[3]))
