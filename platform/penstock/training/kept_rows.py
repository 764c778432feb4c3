"""Test rows that a run keeps beside its bundle, so that another graph can be measured on them.

They are not in the bundle: a model version carries no rows.
"""

from pathlib import Path

import numpy as np
import polars as pl

from penstock.training.declarations import Model
from penstock.training.validation import DAY_COLUMN, Examples

MAX_ROWS = 100_000
"""The newest; they are also those that the last fit of a rolling split is measured on."""
_FILE = "test_rows.parquet"
_LABEL, _FEATURES, _BESIDE = "label", "feature.", "beside."


def keep(run_folder: Path, model: Model, test: Examples) -> None:
    """Write the newest test rows, with what the model's metrics look at, into the run's folder."""
    beside = [DAY_COLUMN, *(name for name in model.group_columns if name in test.frame.columns)]
    newest = np.argsort(test.frame[DAY_COLUMN].to_numpy(), kind="stable")[-MAX_ROWS:]
    columns = [pl.Series(_LABEL, test.labels[newest])]
    columns += [test.frame[name][newest].alias(_BESIDE + name) for name in dict.fromkeys(beside)]
    columns += [
        pl.Series(f"{_FEATURES}{place}", values[newest])
        for place, values in enumerate(test.features.T)
    ]
    pl.DataFrame(columns).write_parquet(run_folder / _FILE)


def read(run_folder: Path) -> Examples | None:
    """Give the rows that `keep` wrote; None where the run kept none."""
    file = run_folder / _FILE
    if not file.is_file():
        return None
    rows = pl.read_parquet(file)
    num_features = sum(name.startswith(_FEATURES) for name in rows.columns)
    beside = [name for name in rows.columns if name.startswith(_BESIDE)]
    return Examples(
        features=rows.select(f"{_FEATURES}{n}" for n in range(num_features)).to_numpy(),
        labels=rows[_LABEL].to_numpy(),
        frame=rows.select(pl.col(name).alias(name.removeprefix(_BESIDE)) for name in beside),
    )
