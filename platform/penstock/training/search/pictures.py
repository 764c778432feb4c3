"""Draws a search: how it went on, and which parameters do well, as PNG and as a page of HTML."""

import html
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import colormaps
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Normalize, to_hex
from matplotlib.figure import Figure

from penstock.files import write_whole
from penstock.training.search.summary import (
    Axis,
    TrialSummary,
    Tuning,
    as_text,
    parameters_as_text,
    place_on,
)

HISTORY_FILE = "history.png"
PARALLEL_FILE = "parallel_coordinates.png"
PAGE_FILE = "tuning.html"
_DPI = 120
# Reversed: the best ones are the dark ones, which white paper shows.
_COLORS = "viridis_r"
_STOPPED = "0.75"
_SHOWN_IN_PAGE = 200


def draw(tuning: Tuning, axes: Sequence[Axis], folder: Path) -> list[Path]:
    """Write the pictures and the page into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / HISTORY_FILE, folder / PARALLEL_FILE, folder / PAGE_FILE]
    _draw_history(tuning, files[0])
    _draw_parallel(tuning, axes, files[1])
    write_whole(files[2], page(tuning, axes).encode())
    return files


def best_so_far(tuning: Tuning) -> list[tuple[int, float]]:
    """Give, for each trial that was measured whole, its number and the best value until then."""
    points: list[tuple[int, float]] = []
    better = max if tuning.higher_is_better else min
    for trial in tuning.trials:
        if trial.state == "complete" and trial.value is not None:
            best = better(points[-1][1], trial.value) if points else trial.value
            points.append((trial.number, best))
    return points


def _draw_history(tuning: Tuning, file: Path) -> None:
    figure = Figure(figsize=(7.0, 4.0), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    for state, words, marker, color in (
        ("stopped", "given up early", "x", "0.6"),
        ("complete", "on every fold", "o", "C0"),
    ):
        chosen = [t for t in tuning.trials if t.state == state and t.value is not None]
        if chosen:
            numbers = [trial.number for trial in chosen]
            reached = [trial.value or 0.0 for trial in chosen]
            plot.scatter(numbers, reached, label=words, marker=marker, color=color)
    points = best_so_far(tuning)
    ends = [*(number for number, _ in points), len(tuning.trials) - 1]
    values = [*(value for _, value in points), points[-1][1]]
    plot.step(ends, values, where="post", color="C1", label="best so far")
    plot.set(
        title=f"{tuning.model}: {len(tuning.trials)} trials",
        xlabel="trial",
        ylabel=f"{tuning.metric}, mean over its folds",
    )
    plot.grid(visible=True, alpha=0.3)
    plot.legend()
    figure.savefig(file, dpi=_DPI)


@dataclass(frozen=True)
class _Panel:
    """One estimator's parameters, and the trials that have them."""

    name: str
    axes: Sequence[Axis]
    trials: Sequence[TrialSummary]


def _panels(tuning: Tuning, axes: Sequence[Axis]) -> list[_Panel]:
    """Give a panel for each estimator that was searched: side by side nobody could read them."""
    own: dict[str, list[Axis]] = {}
    for axis in axes:
        estimator, _, name = axis.name.rpartition(".")
        own.setdefault(estimator, []).append(axis.model_copy(update={"name": name}))
    trials = _by_value(tuning)
    return [
        _Panel(name, found, [trial for trial in trials if name in ("", trial.estimator)])
        for name, found in own.items()
    ]


def _draw_parallel(tuning: Tuning, axes: Sequence[Axis], file: Path) -> None:
    panels = _panels(tuning, axes)
    most = max(len(panel.axes) for panel in panels)
    height = 0.5 + (4.0 if len(panels) == 1 else 2.6 * len(panels))
    figure = Figure(figsize=(max(1.6 * (most + 1), 7.0), height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{tuning.model}: parameters and {tuning.metric}; grey: given up early")
    for plot, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
        _draw_panel(plot, panel, tuning)
    figure.savefig(file, dpi=_DPI)


def _draw_panel(plot: Any, panel: _Panel, tuning: Tuning) -> None:
    low, high = _span(tuning)
    shades = colormaps[_COLORS]
    norm = Normalize(low, high)
    # The best ones last, so that they lie on top.
    for trial in panel.trials:
        places = [*(place_on(axis, trial) for axis in panel.axes), norm(trial.value or 0.0)]
        known = [(x, y) for x, y in enumerate(places) if y is not None]
        is_best = trial.number == tuning.best
        plot.plot(
            [x for x, _ in known],
            [y for _, y in known],
            color=shades(norm(trial.value or 0.0)) if trial.state == "complete" else _STOPPED,
            linewidth=3.0 if is_best else 1.0,
            alpha=1.0 if is_best else 0.7,
        )
    marks = [(x, place, text) for x, axis in enumerate(panel.axes) for place, text in _ticks(axis)]
    marks += [(len(panel.axes), norm(value), f"{value:.4g}") for value in (low, high)]
    for x, place, text in marks:
        plot.annotate(
            text, (x, place), xytext=(3, 0), textcoords="offset points", fontsize=7, va="center"
        )
    for x in range(len(panel.axes) + 1):
        plot.axvline(x, color="0.3", linewidth=0.8)
    names = [*(axis.name for axis in panel.axes), tuning.metric]
    plot.set_xticks(range(len(names)), [name.replace("_", "_\n", 1) for name in names], fontsize=8)
    plot.set_yticks([])
    plot.set(xlim=(-0.1, len(panel.axes) + 0.4), ylim=(-0.05, 1.05))
    plot.set_title(panel.name, loc="left", fontsize=9, fontweight="bold")
    for side in plot.spines.values():
        side.set_visible(False)


def _by_value(tuning: Tuning) -> list[TrialSummary]:
    sign = 1 if tuning.higher_is_better else -1
    valued = [trial for trial in tuning.trials if trial.value is not None]
    return sorted(valued, key=lambda t: (t.state == "complete", sign * (t.value or 0.0)))


def _span(tuning: Tuning) -> tuple[float, float]:
    values = [trial.value for trial in tuning.trials if trial.value is not None]
    low, high = min(values), max(values)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _ticks(axis: Axis) -> list[tuple[float, str]]:
    if axis.options is not None:
        steps = max(len(axis.options) - 1, 1)
        return [(place / steps, option) for place, option in enumerate(axis.options)]
    return [(0.0, as_text(axis.low)), (1.0, as_text(axis.high))]


_STYLE = """
body { font: 14px/1.5 system-ui, sans-serif; margin: 2rem; color: #222; max-width: 70rem }
svg { width: 100%; height: auto } svg text { font-size: 11px; fill: #333 }
.trial { fill: none; stroke-width: 1.5; opacity: .75 }
.trial:hover, circle:hover { stroke-width: 5; opacity: 1; stroke: #d62728 }
.best { stroke-width: 4; opacity: 1 } .axis { stroke: #999 }
table { border-collapse: collapse } td, th { padding: .15rem .8rem; text-align: right }
td:last-child, th:last-child { text-align: left } tr:nth-child(even) { background: #f4f4f4 }
"""


def page(tuning: Tuning, axes: Sequence[Axis]) -> str:
    """Give a page that stands alone: both pictures, each trial telling of itself, and a table."""
    title = html.escape(f"{tuning.model}: a search over {len(tuning.trials)} trials")
    told = html.escape(
        f"{tuning.metric}, mean over {len(tuning.folds)} {tuning.kind_of_folds} folds of time that "
        f"end before the model's test begins. Best: trial {tuning.best}, "
        f"{tuning.winner.value:.4f}, {tuning.winner.estimator} with "
        f"{parameters_as_text(tuning.winner.params)}. It ended because {tuning.reason}; "
        f"{tuning.cpu_s:.0f} CPU seconds."
    )
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style><h1>{title}</h1><p>{told}</p>"
        f"<h2>Parameters</h2>{_parallel_svg(tuning, axes)}"
        f"<h2>History</h2>{_history_svg(tuning)}"
        f"<h2>Trials</h2>{_table(tuning)}</html>\n"
    )


def _parallel_svg(tuning: Tuning, axes: Sequence[Axis]) -> str:
    parts = []
    for panel in _panels(tuning, axes):
        if panel.name:
            parts.append(f"<h3>{html.escape(panel.name)}</h3>")
        parts.append(_panel_svg(panel, tuning))
    return "".join(parts)


def _panel_svg(panel: _Panel, tuning: Tuning) -> str:
    width, height, top, side = 1000, 320, 40, 70
    gap = (width - 2 * side) / max(len(panel.axes), 1)
    low, high = _span(tuning)
    value_axis = Axis(name=tuning.metric, low=low, high=high)

    def at(number: int, place: float) -> str:
        return f"{side + number * gap:.1f},{height - top - place * (height - 2 * top):.1f}"

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for number, axis in enumerate([*panel.axes, value_axis]):
        x = side + number * gap
        parts.append(
            f'<line class="axis" x1="{x}" x2="{x}" y1="{top}" y2="{height - top}"/>'
            f'<text x="{x}" y="18" text-anchor="middle">{html.escape(axis.name)}</text>'
        )
        for place, text in _ticks(axis):
            px, py = at(number, place).split(",")
            parts.append(f'<text x="{float(px) + 4:.1f}" y="{py}">{html.escape(text)}</text>')
    for trial in panel.trials:
        place = ((trial.value or 0.0) - low) / (high - low)
        crossings = [*(place_on(axis, trial) for axis in panel.axes), place]
        points = " ".join(at(n, p) for n, p in enumerate(crossings) if p is not None)
        best = " best" if trial.number == tuning.best else ""
        parts.append(
            f'<polyline class="trial{best}" stroke="{_shade(trial, place)}" points="{points}">'
            f"<title>{html.escape(_told(trial))}</title></polyline>"
        )
    return "".join([*parts, "</svg>"])


def _history_svg(tuning: Tuning) -> str:
    width, height, margin = 1000, 280, 50
    low, high = _span(tuning)
    last = max(len(tuning.trials) - 1, 1)

    def at(number: int, value: float) -> tuple[float, float]:
        up = (value - low) / (high - low)
        return (
            round(margin + number / last * (width - 2 * margin), 1),
            round(height - margin - up * (height - 2 * margin), 1),
        )

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img">']
    for value in (low, high):
        y = at(0, value)[1]
        parts.append(f'<line class="axis" x1="{margin}" x2="{width - margin}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="4" y="{y}">{value:.4g}</text>')
    steps = best_so_far(tuning)
    path = [at(number, value) for number, value in steps]
    corners = [f"{x},{y}" for x, y in path[:1]]
    for (_, before), (x, y) in itertools.pairwise(path):
        corners += [f"{x},{before}", f"{x},{y}"]
    parts.append(f'<polyline class="trial best" stroke="#ff7f0e" points="{" ".join(corners)}"/>')
    for trial in tuning.trials:
        if trial.value is not None:
            x, y = at(trial.number, trial.value)
            place = (trial.value - low) / (high - low)
            parts.append(
                f'<circle cx="{x}" cy="{y}" r="5" fill="{_shade(trial, place)}">'
                f"<title>{html.escape(_told(trial))}</title></circle>"
            )
    return "".join([*parts, "</svg>"])


def _shade(trial: TrialSummary, place: float) -> str:
    return to_hex(colormaps[_COLORS](place)) if trial.state == "complete" else "#bbbbbb"


def _told(trial: TrialSummary) -> str:
    value = "" if trial.value is None else f" {trial.value:.4f}"
    why = f" ({trial.reason})" if trial.reason else ""
    of = f"trial {trial.number}: {trial.estimator}, {trial.num_folds} folds,{value}"
    return f"{of}{why}: {parameters_as_text(trial.params)}"


def _table(tuning: Tuning) -> str:
    rows = []
    for trial in list(reversed(_by_value(tuning)))[:_SHOWN_IN_PAGE]:
        cells = (
            str(trial.number),
            trial.estimator,
            trial.state,
            str(trial.num_folds),
            f"{trial.value:.4f}",
            "" if trial.deviation is None else f"{trial.deviation:.4f}",
            f"{trial.fit_s:.1f}",
            parameters_as_text(trial.params),
        )
        rows.append("".join(f"<td>{html.escape(cell)}</td>" for cell in cells))
    heads = ("trial", "estimator", "state", "folds", tuning.metric, "deviation", "fit, s", "values")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"
