"""Somebody else's Feast repo on our offline store, by one line; Feast's own template is the repo."""

import json
import shutil
from pathlib import Path

import polars as pl
import pyarrow.parquet as pq
import pytest

from feast_scripts import run_script
from projects import REPO_ROOT

SCRIPT = REPO_ROOT / "tests" / "feast_template.py"
OURS = "penstock.features.offline_store.PenstockOfflineStore"
ENGINE = "penstock.features.compute_engine.PenstockComputeEngine"


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `feast init` makes, with its sample data."""
    folder = tmp_path_factory.mktemp("template")
    run_script(SCRIPT, "init", "drivers", cwd=folder)
    return folder / "drivers"


def walk(template: Path, folder: Path, store_type: str) -> tuple[pl.DataFrame, dict]:
    """The template's answers on one store: historical rows by label, online values."""
    drivers = folder / "drivers"
    shutil.copytree(template, drivers)
    repo = drivers / "feature_repo"
    definitions = repo / "feature_definitions.py"
    # The template names its data by the absolute path at which it was made.
    definitions.write_text(definitions.read_text().replace(str(template), str(drivers)))
    if store_type == "duckdb":
        # The template's times are nanoseconds, at which this store fails.
        data = repo / "data" / "driver_stats.parquet"
        pq.write_table(pq.read_table(data), data, coerce_timestamps="us")
    with (repo / "feature_store.yaml").open("a") as file:
        file.write(f"\noffline_store: {{type: {store_type}}}\n")
        if store_type == OURS:
            # Writes into Feast's own online store here.
            file.write(f"batch_engine: {{type: {ENGINE}}}\n")
    run_script(SCRIPT, "walk", repo, folder, cwd=repo)
    return (
        pl.read_parquet(folder / "historical.parquet").sort("label"),
        json.loads((folder / "online.json").read_text()),
    )


def test_one_line_gives_the_same_answers_as_feasts_duckdb_store(template: Path, tmp_path: Path):
    answers = {}
    for name, store_type in (("ours", OURS), ("theirs", "duckdb")):
        (tmp_path / name).mkdir()
        answers[name] = walk(template, tmp_path / name, store_type)
    historical, online = answers["ours"]
    assert historical.equals(answers["theirs"][0])
    assert online == answers["theirs"][1]
    # The question was one that a wrong store would fail: there are values, and there are gaps.
    assert 0 < historical["conv_rate"].null_count() < historical.height / 2
    assert online["conv_rate"][-1] is None
    assert all(value is not None for value in online["conv_rate"][:-1])
