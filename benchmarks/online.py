"""Online reads: Penstock's batched read beside Feast's own call, on SQLite and on Redis.

    scripts/bench online [--store sqlite|redis|both] [--reads 200]

1, 16 and 64 entities with 15 and 50 features of two views. Each store holds the same rows: ours in
a Penstock project, Feast's in a plain Feast repo with Feast's own store, written by Feast. Feast is
asked twice: its call as it comes, and with the vectors that it precomputes for a service. The reads
take turns; each answer's values must be equal. Milliseconds, p50 and p99.
"""

import argparse
import json
import os
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from materialize import redis_server

NUM_USERS = 20_000
WIDTHS = {15: (8, 7), 50: (30, 20)}
"""Features in all -> how many in each of the two views."""
NUM_ENTITIES = (1, 16, 64)
TIME = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=1)
_DECLARATIONS = """
from datetime import timedelta
from feast import Entity, FeatureService, FeatureView, Field, ValueType
from feast.types import Float64, Int64
from penstock.features.delta_source import DeltaSource

user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)


def view(name, width):
    return FeatureView(
        name=name,
        entities=[user],
        ttl=timedelta(days=1),
        schema=[
            Field(name="user", dtype=Int64),
            *(Field(name=f"{name}_{n}", dtype=Float64) for n in range(width)),
        ],
        source=DeltaSource(table=f"bench.{name}", timestamp_field="at"),
    )


WIDTHS = %r
views = {
    (total, side): view(f"v{total}_{side}", width[side])
    for total, width in WIDTHS.items()
    for side in (0, 1)
}
globals().update({v.name: v for v in views.values()})
globals().update(
    {
        f"s{total}": FeatureService(name=f"s{total}", features=[views[total, 0], views[total, 1]])
        for total in WIDTHS
    }
)
"""


def frames() -> dict[str, pl.DataFrame]:
    found = {}
    for total, sides in WIDTHS.items():
        for side, width in enumerate(sides):
            name = f"v{total}_{side}"
            numbers = pl.Series("user", range(NUM_USERS), dtype=pl.Int64)
            found[name] = pl.DataFrame(
                [
                    numbers,
                    pl.Series("at", [TIME] * NUM_USERS, dtype=pl.Datetime("us", "UTC")),
                    *(
                        pl.Series(f"{name}_{n}", (numbers.hash(n) % 1_000_000).to_numpy() / 997)
                        for n in range(width)
                    ),
                ]
            )
    return found


def open_penstock(folder: Path, rows: dict[str, pl.DataFrame], redis: str) -> Any:
    from penstock.data import tables
    from penstock.features.materialize import materialize
    from penstock.features.online import OnlineReader
    from penstock.features.store import apply
    from penstock.settings import Settings

    case = folder / "feature_repo" / "bench"
    case.mkdir(parents=True)
    for empty in ("__init__.py", "tables.py"):
        (case / empty).touch()
    (case / "views.py").write_text(_DECLARATIONS % WIDTHS)
    (folder / "feature_repo" / "feature_store.yaml").write_text("project: bench\nprovider: local\n")
    online = {"online_store": "redis", "redis": redis} if redis else {}
    settings = Settings.model_validate(
        {
            "project_root": folder,
            "storage": {"root": str(folder / "storage")},
            "feature_store": online,
        }
    )
    for name, frame in rows.items():
        tables.commit(settings, f"bench.{name}", frame, mode="overwrite")
    apply(settings, ["bench"])
    materialize(settings, "bench")
    return {total: OnlineReader.open(settings, "bench", f"s{total}") for total in WIDTHS}


def open_feast(folder: Path, rows: dict[str, pl.DataFrame], redis: str) -> Any:
    from feast import (
        Entity,
        FeatureService,
        FeatureStore,
        FeatureView,
        Field,
        FileSource,
        ValueType,
    )
    from feast.repo_config import RepoConfig
    from feast.types import Float64, Int64

    folder.mkdir()
    store = FeatureStore(
        config=RepoConfig(
            project="peer",
            provider="local",
            repo_path=folder,
            registry={
                "registry_type": "file",
                "path": str(folder / "r.db"),
                "cache_ttl_seconds": 0,
            },
            online_store={"type": "redis", "connection_string": redis}
            if redis
            else {"type": "sqlite", "path": str(folder / "online.db")},
            entity_key_serialization_version=3,
        )
    )
    user = Entity(name="user", join_keys=["user"], value_type=ValueType.INT64)
    views = {}
    for name, frame in rows.items():
        path = folder / f"{name}.parquet"
        frame.write_parquet(path)
        views[name] = FeatureView(
            name=name,
            entities=[user],
            ttl=timedelta(days=1),
            schema=[
                Field(name="user", dtype=Int64),
                *(Field(name=c, dtype=Float64) for c in frame.columns if c not in ("user", "at")),
            ],
            source=FileSource(path=str(path), timestamp_field="at"),
        )
    services = [
        FeatureService(
            name=f"{kind}{total}",
            features=[views[f"v{total}_0"], views[f"v{total}_1"]],
            precompute_online=kind == "vectors",
        )
        for total in WIDTHS
        for kind in ("rows", "vectors")
    ]
    store.apply([user, *views.values(), *services])
    for name, frame in rows.items():
        store.write_to_online_store(name, frame.to_pandas())
    return store


def feast_values(store: Any, service: Any, users: list[int], names: tuple[str, ...]) -> Any:
    rows = [{"user": user} for user in users]
    if not service.precompute_online:
        found = store.get_online_features(service, rows).to_dict()
        return np.array([found[name] for name in names], dtype=np.float64).T
    # Vectors are found by their features' full names only.
    found = store.get_online_features(service, rows, full_feature_names=True).to_dict()
    names = tuple(
        f"{p.name}__{f.name}" for p in service.feature_view_projections for f in p.features
    )
    return np.array([found[name] for name in names], dtype=np.float64).T


def measure(
    calls: dict[str, Callable[[list[int]], Any]], num_entities: int, num_reads: int
) -> dict[str, list[float]]:
    random = np.random.default_rng(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(num_reads + 5):
        users = random.integers(0, NUM_USERS, num_entities).tolist()
        answers = []
        for name, call in calls.items():
            began = time.perf_counter()
            answers.append(call(users))
            if turn >= 5:  # the first ones open connections
                times[name].append((time.perf_counter() - began) * 1000)
        for answer in answers[1:]:
            np.testing.assert_allclose(answer, answers[0], rtol=1e-12)
    return times


def compare(folder: Path, kind: str, redis: str, num_reads: int) -> dict[str, float]:
    rows = frames()
    ours = open_penstock(folder / f"{kind}-penstock", rows, redis)
    theirs = open_feast(folder / f"{kind}-feast", rows, redis)
    line = {}
    for total, reader in ours.items():
        names = reader.feature_names
        services = {way: theirs.get_feature_service(f"{way}{total}") for way in ("rows", "vectors")}
        calls: dict[str, Callable[[list[int]], Any]] = {
            "penstock": lambda users, reader=reader: (
                reader.read([{"user": user} for user in users]).values
            ),
            "feast": lambda users, service=services["rows"], names=names: feast_values(
                theirs, service, users, names
            ),
        }
        if precompute(theirs, f"vectors{total}"):
            calls["vectors"] = lambda users, service=services["vectors"], names=names: feast_values(
                theirs, service, users, names
            )
        for num_entities in NUM_ENTITIES:
            times = measure(calls, num_entities, num_reads)
            medians = {name: statistics.median(found) for name, found in times.items()}
            high = {name: float(np.percentile(found, 99)) for name, found in times.items()}
            ratio = medians["feast"] / medians["penstock"]
            shown = "  ".join(
                f"{medians[name]:7.2f} {high[name]:7.2f}" if name in medians else " " * 15
                for name in ("penstock", "feast", "vectors")
            )
            print(f"{kind:7}{num_entities:9}{total:9}  {shown}  {ratio:6.1f}")
            line[f"{kind}_{num_entities}x{total}"] = round(ratio, 2)
            if "vectors" in medians:
                vectors = medians["vectors"] / medians["penstock"]
                line[f"{kind}_{num_entities}x{total}_vectors"] = round(vectors, 2)
    return line


def precompute(store: Any, service: str) -> bool:
    """Let Feast compute its vectors: it does so on Redis only."""
    return bool(store.precompute_feature_service(service))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--store", choices=("sqlite", "redis", "both"), default="both")
    parser.add_argument("--reads", type=int, default=200)
    given = parser.parse_args()
    kinds = ["sqlite", "redis"] if given.store == "both" else [given.store]
    if "redis" in kinds and shutil.which("redis-server") is None:
        sys.exit("redis-server is not installed: apt-get install -y redis-server")
    warnings.simplefilter("ignore")
    with (
        tempfile.TemporaryDirectory() as name,
        redis_server(Path(name), wanted="redis" in kinds) as redis,
    ):
        print(f"{'':25}  {'Penstock':>15}  {'Feast':>15}  {'its vectors':>15}   Feast")
        print(f"{'store':7}{'entities':>9}{'features':>9}  " + "    p50     p99  " * 3 + " ratio")
        line: dict[str, Any] = {"benchmark": "online"}
        for kind in kinds:
            line |= compare(Path(name), kind, redis if kind == "redis" else "", given.reads)
    line |= {"goal_64x50": 3, "load_average": round(os.getloadavg()[0], 1)}
    print(json.dumps(line))


if __name__ == "__main__":
    main()
