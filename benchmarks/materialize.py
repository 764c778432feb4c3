"""Materialize: Penstock's engine and online stores beside Feast's local engine and its own.

    scripts/bench materialize [--store sqlite|redis|both] [--rows 1000000] [--peer-rows 100000]

Both read the same Parquet file (one row an entity, twelve float features) through Penstock's
offline store, by Feast's own `store.materialize()`. Feast's engine holds everything as Python
objects, so it gets fewer rows (its rate is the same or better for it); compared are rows a second.
Then the values are read back from both by `get_online_features` and must be equal.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl

FEATURES = [f"f{n}" for n in range(12)]
TIME = datetime(2026, 1, 1, tzinfo=UTC)
OFFLINE = {"type": "penstock.features.offline_store.PenstockOfflineStore"}
ENGINE = {"type": "penstock.features.compute_engine.PenstockComputeEngine"}
NUM_CHECKED = 500


def write_source(folder: Path, name: str, num_rows: int) -> Path:
    numbers = pl.int_range(num_rows, dtype=pl.Int64)
    frame = pl.select(
        numbers.alias("user"),
        (pl.lit(TIME) + pl.duration(seconds=numbers % 86_400)).alias("at"),
        *((numbers.hash(n) % 1_000_000 / 997).alias(name) for n, name in enumerate(FEATURES)),
    )
    path = folder / f"{name}.parquet"
    frame.write_parquet(path)
    return path


def open_store(folder: Path, source: Path, online: dict[str, Any], engine: Any) -> Any:
    from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64

    folder.mkdir()
    store = FeatureStore(
        config=RepoConfig(
            project=f"bench_{folder.name.replace('-', '_')}",
            provider="local",
            repo_path=folder,
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
            online_store=online,
            offline_store=OFFLINE,
            batch_engine=engine,
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    view = FeatureView(
        name="users",
        entities=[user],
        schema=[Field(name="user", dtype=Int64), *(Field(name=f, dtype=Float64) for f in FEATURES)],
        source=FileSource(path=str(source), timestamp_field="at"),
        ttl=timedelta(days=3650),
    )
    store.apply([user, view])
    return store


def rate(store: Any, num_rows: int) -> float:
    began = time.perf_counter()
    store.materialize(TIME - timedelta(days=1), TIME + timedelta(days=2))
    return num_rows / (time.perf_counter() - began)


def read(store: Any, num_rows: int) -> dict[str, list[Any]]:
    step = max(1, num_rows // NUM_CHECKED)
    rows = [{"user": n} for n in range(0, num_rows, step)]
    found = store.get_online_features([f"users:{f}" for f in FEATURES], rows).to_dict()
    assert None not in found[FEATURES[0]], "a row is missing"
    return dict(found)


@contextmanager
def redis_server(folder: Path, *, wanted: bool) -> Iterator[str]:
    if not wanted:
        yield ""
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""],
        cwd=folder,
        stdout=subprocess.DEVNULL,
    )
    time.sleep(0.5)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def measure(folder: Path, kind: str, given: argparse.Namespace, redis: str) -> dict[str, Any]:
    sources = {n: write_source(folder, f"{kind}-{n}", n) for n in (given.rows, given.peer_rows)}
    ours, theirs = {
        "sqlite": (
            {
                "type": "penstock.features.sqlite_online_store.RowSqliteOnlineStore",
                "path": "online.db",
            },
            {"type": "sqlite", "path": "online.db"},
        ),
        "redis": (
            {
                "type": "penstock.features.redis_online_store.GuardedRedisOnlineStore",
                "connection_string": redis,
            },
            {"type": "redis", "connection_string": redis},
        ),
    }[kind]
    rates: dict[str, list[float]] = {"penstock": [], "feast": []}
    for turn in range(given.repeat):
        mine = open_store(folder / f"{kind}-ours-{turn}", sources[given.rows], ours, ENGINE)
        rates["penstock"].append(rate(mine, given.rows))
        peer_folder = folder / f"{kind}-feast-{turn}"
        peer = open_store(peer_folder, sources[given.peer_rows], theirs, "local")
        rates["feast"].append(rate(peer, given.peer_rows))
        assert read(mine, given.peer_rows) == read(peer, given.peer_rows), "values differ"
    medians = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{kind:7} {medians['penstock']:12,.0f} {medians['feast']:12,.0f} "
        f"{medians['penstock'] / medians['feast']:7.1f}"
    )
    return {f"{kind}_ratio": round(medians["penstock"] / medians["feast"], 2)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--peer-rows", type=int, default=100_000)
    parser.add_argument("--repeat", type=int, default=3)
    given = parser.parse_args()
    kinds = ["sqlite", "redis"] if given.store == "both" else [given.store]
    if "redis" in kinds and shutil.which("redis-server") is None:
        sys.exit("redis-server is not installed: apt-get install -y redis-server")
    warnings.simplefilter("ignore")
    with (
        tempfile.TemporaryDirectory() as name,
        redis_server(Path(name), wanted="redis" in kinds) as redis,
    ):
        print(f"{given.rows:,} rows x 12 features (Feast's engine: {given.peer_rows:,})")
        print(f"{'store':7} {'penstock r/s':>12} {'feast r/s':>12} {'ratio':>7}")
        line: dict[str, Any] = {"benchmark": "materialize", "rows": given.rows}
        for kind in kinds:
            line |= measure(Path(name), kind, given, redis)
        line |= {"goal": 5, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
