"""Draws a run's curves as PNG files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from penstock.training.estimators.base import Labels, Scores
from penstock.training.metrics import Curves

_INCHES = (5.0, 4.0)
_DPI = 120
_MAX_CELLS = 50


def draw(curves: Curves, metrics: Mapping[str, float], folder: Path) -> list[Path]:
    """Write roc.png, precision_recall.png and calibration.png into the folder."""
    area = metrics.get("roc_auc")
    average = metrics.get("average_precision")
    return [
        _draw(
            folder / "roc.png",
            curves.false_positive_rates,
            curves.true_positive_rates,
            title="ROC" if area is None else f"ROC, area {area:.3f}",
            axes=("false positive rate", "true positive rate"),
            diagonal=True,
        ),
        _draw(
            folder / "precision_recall.png",
            curves.recalls,
            curves.precisions,
            title="Precision and recall" + ("" if average is None else f", AP {average:.3f}"),
            axes=("recall", "precision"),
        ),
        _draw(
            folder / "calibration.png",
            curves.calibration.mean_scores,
            curves.calibration.positive_shares,
            title="Calibration",
            axes=("mean score of the bin", "share of positives"),
            diagonal=True,
            marker="o",
        ),
    ]


def draw_numbers(labels: Labels, scores: Scores, folder: Path) -> list[Path]:
    """Write predicted.png, how often each score met each label, into the folder."""
    file = folder / "predicted.png"
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    edges = (_label_edges(labels), np.histogram_bin_edges(scores, _MAX_CELLS))
    counts = plot.hist2d(labels, scores, bins=edges, norm=LogNorm(), cmin=1)
    low, high = float(labels.min()), float(labels.max())
    plot.plot([low, high], [low, high], color="0.3", linewidth=1, linestyle="--")
    figure.colorbar(counts[-1], label="test rows")
    plot.set(title="Predicted and true", xlabel="label", ylabel="score")
    figure.savefig(file, dpi=_DPI)
    return [file]


def draw_scores(scores: Scores, folder: Path) -> list[Path]:
    """Write scores.png, how many test rows have which score, into the folder."""
    file = folder / "scores.png"
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    plot.hist(scores, bins=_MAX_CELLS, log=True)
    plot.set(title="Scores", xlabel="score", ylabel="test rows")
    figure.savefig(file, dpi=_DPI)
    return [file]


def _label_edges(labels: Labels) -> npt.NDArray[np.float64]:
    """Where cells of labels end: around each label where these are few, else equally far apart."""
    distinct = np.unique(labels).astype(np.float64)
    if len(distinct) > _MAX_CELLS or len(distinct) < 2:
        return np.histogram_bin_edges(labels, _MAX_CELLS)
    middles = (distinct[1:] + distinct[:-1]) / 2
    ends = 2 * distinct[[0, -1]] - middles[[0, -1]]
    return np.concatenate([ends[:1], middles, ends[1:]])


def _draw(
    file: Path,
    x: Scores,
    y: Scores,
    *,
    title: str,
    axes: tuple[str, str],
    diagonal: bool = False,
    marker: str = "",
) -> Path:
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    if diagonal:
        plot.plot([0, 1], [0, 1], color="0.7", linewidth=1, linestyle="--")
    plot.plot(x, y, marker=marker)
    plot.set(title=title, xlabel=axes[0], ylabel=axes[1], xlim=(0, 1), ylim=(0, 1.02))
    plot.grid(visible=True, alpha=0.3)
    figure.savefig(file, dpi=_DPI)
    return file
