"""Training sets that are written as the library's own sink writes them."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from penstock.features.training_set import TrainingSet

START = datetime(2024, 1, 1, tzinfo=UTC)
FEATURES = tuple(f"f{number}" for number in range(5))


def make_frame(num_rows: int, *, seed: int = 0) -> pl.DataFrame:
    """Rows of a hundred days, not in their order, a tenth of the values missing."""
    random = np.random.default_rng(seed)
    seconds = random.integers(0, 100 * 86_400, num_rows)
    features = random.normal(size=(num_rows, len(FEATURES)))
    labels = features[:, 0] + random.normal(size=num_rows) > 1
    features[random.random(features.shape) < 0.1] = np.nan
    return pl.DataFrame(
        {
            "at": np.datetime64(START.replace(tzinfo=None), "us")
            + seconds * np.timedelta64(1, "s"),
            "station": random.integers(0, 400, num_rows),
            "broke": labels.astype(np.int8),
            **{name: features[:, place] for place, name in enumerate(FEATURES)},
        },
    ).with_columns(pl.col("at").dt.replace_time_zone("UTC"), pl.col(FEATURES).fill_nan(None))


def store(
    frame: pl.DataFrame, folder: Path, *, rows_per_file: int = 400, rows_per_group: int = 150
) -> TrainingSet:
    """Write the rows into several files of several row groups."""
    folder.mkdir(parents=True, exist_ok=True)
    for number, start in enumerate(range(0, frame.height, rows_per_file)):
        pq.write_table(
            frame.slice(start, rows_per_file).to_arrow(compat_level=pl.CompatLevel.oldest()),
            folder / f"data-{number:05}.parquet",
            row_group_size=rows_per_group,
            write_page_checksum=True,
        )
    return TrainingSet(
        id="a" * 64,
        use_case="reservoir",
        service="reservoir_v1",
        label="broke",
        event_time="at",
        table_versions={},
        feature_names=FEATURES,
        num_rows=frame.height,
        path=str(folder),
    )
