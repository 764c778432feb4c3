"""Curves as files."""

import numpy as np
import pytest

from penstock.training import plots
from penstock.training.metrics import curves

PNG = b"\x89PNG\r\n\x1a\n"


def test_three_curves_are_drawn_as_png(tmp_path):
    drawn = curves(np.array([0, 1, 0, 1], np.int8), np.array([0.1, 0.9, 0.4, 0.3]))
    files = plots.draw(drawn, {"roc_auc": 0.75}, tmp_path)
    assert [f.name for f in files] == ["roc.png", "precision_recall.png", "calibration.png"]
    for file in files:
        content = file.read_bytes()
        assert content.startswith(PNG)
        assert len(content) > 5_000


@pytest.mark.parametrize("distinct", [2, 30, 400])
def test_numbers_are_drawn_beside_what_was_predicted(tmp_path, distinct):
    labels = np.random.default_rng(0).integers(0, distinct, 500).astype(np.float64)
    (file,) = plots.draw_numbers(labels, labels * 0.8 + 3, tmp_path)
    assert file.name == "predicted.png"
    assert file.read_bytes().startswith(PNG)
