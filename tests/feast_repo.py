"""A small Feast repo on disk for the tests of what Feast calls: no Penstock project around it."""

import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, ValueType
from feast.data_source import DataSource
from feast.repo_config import RepoConfig
from feast.types import Float64, Int64

PENSTOCK = "penstock.features.offline_store.PenstockOfflineStore"
START = datetime(2024, 2, 28, tzinfo=UTC)


def at(second: float) -> datetime:
    return START + timedelta(seconds=second)


def readings(rows: list[tuple[int, float, float, float]]) -> pl.DataFrame:
    """Rows of (sensor, event second, created second, level)."""
    return pl.DataFrame(
        [(s, at(t), at(c), level, n) for n, (s, t, c, level) in enumerate(rows)],
        schema={
            "sensor": pl.Int64,
            "seen_at": pl.Datetime("us", "UTC"),
            "made_at": pl.Datetime("us", "UTC"),
            "level": pl.Float64,
            "number": pl.Int64,
        },
        orient="row",
    )


ROWS = [(1, 0, 0, 0.5), (2, 1, 1, 1.5), (1, 5, 5, 2.5), (1, 5, 9, 3.5), (2, 8, 8, 4.5)]


def open_store(folder: Path, offline_store: dict[str, Any] | None = None) -> FeatureStore:
    return FeatureStore(
        config=RepoConfig(
            project="sensors",
            provider="local",
            repo_path=folder,
            registry={"registry_type": "sql", "path": f"sqlite:///{folder}/registry.db"},
            online_store={"type": "sqlite", "path": str(folder / "online.db")},
            offline_store=offline_store or {"type": PENSTOCK},
            entity_key_serialization_version=3,
        )
    )


def sensor() -> Entity:
    return Entity(name="sensor", join_keys=["sensor"], value_type=ValueType.INT64)


def file_source(path: Path, **more: Any) -> FileSource:
    given = {"timestamp_field": "seen_at", "created_timestamp_column": "made_at", **more}
    return FileSource(name="readings", path=str(path), **given)


def view(source: DataSource, **more: Any) -> FeatureView:
    given: dict[str, Any] = {
        "name": "readings",
        "entities": [sensor()],
        "schema": [
            Field(name="sensor", dtype=Int64),
            Field(name="level", dtype=Float64),
            Field(name="number", dtype=Int64),
        ],
        "source": source,
        "ttl": timedelta(seconds=10),
    }
    return FeatureView(**{**given, **more})


def compare_stores(folder: Path) -> None:
    """Answer one question by Penstock's store and by Feast's DuckDB store; keep both answers."""
    labels = pl.read_parquet(folder / "labels.parquet").to_pandas()
    for kind in (PENSTOCK, "duckdb"):
        name = kind.rsplit(".", 1)[-1]
        (folder / name).mkdir()
        store = open_store(folder / name, {"type": kind})
        store.apply([sensor(), view(file_source(folder / "readings.parquet"))])
        job = store.get_historical_features(labels, ["readings:level", "readings:number"])
        got = pl.DataFrame(pl.from_arrow(job.to_arrow()))
        got.select("label", "level", "number").write_parquet(folder / f"{name}.parquet")


if __name__ == "__main__":
    compare_stores(Path(sys.argv[1]))
