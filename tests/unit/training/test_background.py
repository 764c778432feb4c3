import numpy as np
import pytest

from penstock.handover import Background
from penstock.training.background import draw_background


def rows(num_rows: int, num_features: int = 3) -> np.ndarray:
    drawn = np.random.default_rng(0).normal(size=(num_rows, num_features))
    drawn[::7, 0] = np.nan
    return drawn


def names(num: int) -> tuple[str, ...]:
    return tuple(f"f{n}" for n in range(num))


def test_it_is_some_of_the_training_rows_the_same_each_time():
    given = rows(5_000)
    found = draw_background(given, feature_names=names(3))
    assert len(found.rows) == 100
    known = {tuple(None if np.isnan(v) else v for v in row) for row in given.tolist()}
    assert set(found.rows) <= known
    assert draw_background(given, feature_names=names(3)) == found
    assert Background.model_validate_json(found.model_dump_json()) == found


def test_few_rows_are_all_taken_and_wide_ones_are_fewer():
    assert len(draw_background(rows(30), feature_names=names(3)).rows) == 30
    assert len(draw_background(rows(500, 400), feature_names=names(400)).rows) == 30


def test_usual_is_where_most_values_lie():
    given = np.column_stack([np.arange(1001.0), np.full(1001, np.nan)])
    found = draw_background(given, feature_names=names(2))
    assert found.usual[0] == pytest.approx((50.0, 950.0))
    assert found.usual[1] is None
