from datetime import date
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from int8_runs import TINY, examples, model_of
from penstock.training import kept_rows
from penstock.training.declarations import Model, TopGroupsPrecision
from penstock.training.metrics import evaluate
from penstock.training.validation import DAY_COLUMN, Examples


def with_groups(num_rows: int = 500) -> tuple[Model, Examples]:
    made = examples(num_rows)
    groups = pl.Series("STATION", [f"s{row % 9}" for row in range(num_rows)])
    top = TopGroupsPrecision(name="top_2", group="STATION", k=2)
    model = model_of(TINY, None)
    model = model.model_copy(update={"metrics": (*model.metrics, top)})
    frame = made.frame.with_columns(groups, secret=pl.lit("x"))
    return model, Examples(features=made.features, labels=made.labels, frame=frame)


def test_what_comes_back_gives_the_same_metrics(tmp_path: Path):
    model, test = with_groups()
    kept_rows.keep(tmp_path, model, test)
    found = kept_rows.read(tmp_path)
    np.testing.assert_array_equal(found.features, test.features)
    scores = np.random.default_rng(2).random(test.num_rows)
    assert evaluate(model.metrics, found, scores) == evaluate(model.metrics, test, scores)
    assert "secret" not in found.frame.columns


def test_of_too_many_the_newest_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(kept_rows, "MAX_ROWS", 100)
    model, test = with_groups()
    mixed = np.random.default_rng(0).permutation(test.num_rows)
    test = Examples(
        features=test.features[mixed], labels=test.labels[mixed], frame=test.frame[mixed]
    )
    kept_rows.keep(tmp_path, model, test)
    days = kept_rows.read(tmp_path).frame[DAY_COLUMN]
    assert len(days) == 100
    assert days.min() >= date(2024, 1, 22)


def test_a_run_that_kept_none_has_none(tmp_path: Path):
    assert kept_rows.read(tmp_path) is None
