"""Training sets: Penstock's offline store beside Feast's DuckDB store and a raw polars as-of.

Measured is, for all three alike, the way from label rows in memory (a pandas frame) and feature
values in Parquet files (two views, six features each, one row a payment) to one Arrow table in
memory that holds every label row with its twelve features. Each engine has a process of its own,
and they take turns, `--repeat` times; reported are medians, and the peak memory of the process.
The values of all three must be equal.

The TTL is short for the DuckDB store's sake: it joins every label with every row inside the TTL
before it picks one, so a longer TTL costs it time and memory (not so the other two).
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
from _card_fraud import CUSTOMER, TERMINAL, read_payments

from penstock.features.windows import compute

STORES = {
    "penstock": "penstock.features.offline_store.PenstockOfflineStore",
    "duckdb": "duckdb",
}
ENGINES = (*STORES, "polars")
VIEWS = {"customer": CUSTOMER, "terminal": TERMINAL}
KEY = "TRANSACTION_ID"
TIME = "TX_DATETIME"


def prepare(folder: Path, num_rows: int | None) -> int:
    payments = read_payments(num_rows).with_columns(pl.col(TIME).dt.replace_time_zone("UTC"))
    for name, windows in VIEWS.items():
        compute(payments, windows).write_parquet(folder / f"{name}.parquet")
    payments.select(KEY, "CUSTOMER_ID", "TERMINAL_ID", TIME).write_parquet(
        folder / "labels.parquet"
    )
    return payments.height


def feast_engine(
    folder: Path, store_type: str, ttl: timedelta
) -> Callable[[pd.DataFrame], pa.Table]:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64

    kind = store_type.rsplit(".", 1)[-1]
    store = FeatureStore(
        config=RepoConfig(
            project="offline_benchmark",
            provider="local",
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/{kind}.db"},
            online_store=None,
            offline_store={"type": store_type},
            entity_key_serialization_version=3,
        )
    )
    views = []
    for name, windows in VIEWS.items():
        entity = Entity(name=name, join_keys=list(windows.entity), value_type=ValueType.INT64)
        features = [
            Field(name=f, dtype=Int64 if "_NB_" in f else Float64) for f in windows.feature_names()
        ]
        source = FileSource(name=name, path=str(folder / f"{name}.parquet"), timestamp_field=TIME)
        view = FeatureView(
            name=name,
            entities=[entity],
            schema=[*features, Field(name=windows.entity[0], dtype=Int64)],
            source=source,
            ttl=ttl,
        )
        store.apply([entity, view])
        views.append(view)
    names = [f"{n}:{f}" for n, windows in VIEWS.items() for f in windows.feature_names()]
    return lambda labels: store.get_historical_features(labels, features=names).to_arrow()


def polars_engine(folder: Path, ttl: timedelta) -> Callable[[pd.DataFrame], pa.Table]:
    def run(labels: pd.DataFrame) -> pa.Table:
        frame = pl.from_pandas(labels).with_columns(pl.col(TIME).dt.cast_time_unit("us"))
        for name, windows in VIEWS.items():
            side = pl.read_parquet(folder / f"{name}.parquet")
            frame = frame.join_asof(
                side, on=TIME, by=windows.entity[0], tolerance=ttl, check_sortedness=False
            )
        return frame.to_arrow()

    return run


def serve_engine(engine: str, folder: Path, ttl: timedelta) -> None:
    """Run once for each line on stdin and say how long it took; at its end keep the last answer."""
    labels = pl.read_parquet(folder / "labels.parquet").to_pandas()
    run = (
        polars_engine(folder, ttl)
        if engine == "polars"
        else feast_engine(folder, STORES[engine], ttl)
    )
    table = None
    print("ready", flush=True)
    for _ in sys.stdin:
        del table
        start = time.perf_counter()
        table = run(labels)
        print(json.dumps(time.perf_counter() - start), flush=True)
    # Not getrusage: its maximum starts at what the parent held when it forked.
    status = Path("/proc/self/status").read_text()
    peak_bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024
    features = [f for windows in VIEWS.values() for f in windows.feature_names()]
    pl.DataFrame(pl.from_arrow(table)).select(KEY, *features).write_parquet(
        folder / f"result_{engine}.parquet"
    )
    print(json.dumps(peak_bytes), flush=True)


class Engine:
    """One engine in a process of its own."""

    def __init__(self, name: str, folder: Path, ttl_days: int) -> None:
        self.name, self.took_s, self.peak_bytes = name, [], 0
        command = [sys.executable, __file__, "--engine", name, "--folder", str(folder)]
        self._errors = (folder / f"{name}.log").open("w+")
        self._process = subprocess.Popen(
            [*command, "--ttl-days", str(ttl_days)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
        )
        self._answer("ready")

    def _answer(self, wanted: str = "") -> str:
        for line in self._process.stdout:
            # Feast may print on its own; ours are the bare numbers.
            if line.strip() == wanted or (not wanted and line[:1].isdigit()):
                return line
        self._errors.seek(0)
        sys.exit(f"{self.name} failed:\n{self._errors.read()}")

    def run(self) -> None:
        self._process.stdin.write("run\n")
        self._process.stdin.flush()
        self.took_s.append(float(self._answer()))

    def close(self) -> None:
        self._process.stdin.close()
        self.peak_bytes = int(self._answer())
        self._process.wait()


def assert_equal(folder: Path, engines: tuple[str, ...]) -> None:
    results = {e: pl.read_parquet(folder / f"result_{e}.parquet") for e in engines}
    order = pl.read_parquet(folder / "labels.parquet")[KEY]
    assert results["penstock"][KEY].equals(order), "Penstock lost a row or the order"
    first = results["penstock"].sort(KEY)
    for engine, result in results.items():
        other = result.sort(KEY).cast(dict(first.schema))
        assert first.equals(other), f"{engine} differs from penstock"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, help="label rows (default: all 1.47 M)")
    parser.add_argument("--repeat", type=int, default=5, help="runs in each process")
    parser.add_argument("--ttl-days", type=int, default=1, help="the views' TTL")
    parser.add_argument("--engine", choices=ENGINES, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    ttl = timedelta(days=given.ttl_days)
    if given.engine:
        warnings.simplefilter("ignore")
        serve_engine(given.engine, given.folder, ttl)
        return
    with tempfile.TemporaryDirectory() as name:
        num_rows = prepare(Path(name), given.rows)
        engines = [Engine(engine, Path(name), given.ttl_days) for engine in ENGINES]
        # In turns, so that whatever else the machine does meets all of them.
        for _ in range(given.repeat):
            for engine in engines:
                engine.run()
        for engine in engines:
            engine.close()
        assert_equal(Path(name), ENGINES)
    print(f"{num_rows:,} label rows x {len(VIEWS)} views, TTL {given.ttl_days} days; equal values")
    print(f"{'engine':10} {'median s':>9} {'min s':>7} {'max s':>7} {'peak MB':>8}")
    for engine in engines:
        print(
            f"{engine.name:10} {statistics.median(engine.took_s):9.3f} {min(engine.took_s):7.3f} "
            f"{max(engine.took_s):7.3f} {engine.peak_bytes / 1e6:8.0f}"
        )
    median_s = {engine.name: statistics.median(engine.took_s) for engine in engines}
    print(
        json.dumps(
            {
                "offline_vs_duckdb": round(median_s["duckdb"] / median_s["penstock"], 2),
                "offline_vs_polars_asof": round(median_s["penstock"] / median_s["polars"], 2),
                "peak_bytes": engines[0].peak_bytes,
                "num_rows": num_rows,
                "ttl_days": given.ttl_days,
            }
        )
    )


if __name__ == "__main__":
    main()
