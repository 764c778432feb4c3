"""Draws an explanation: a bar a feature, from the score on average to the score of the row."""

from collections.abc import Mapping
from io import BytesIO
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from penstock.serving.explanations import number, value_in_words

_WIDTH_INCHES, _INCHES_PER_BAR, _MARGIN_INCHES = 9.0, 0.32, 1.5
_DPI = 120
_RAISES, _LOWERS, _REST = "#c8442f", "#3f7fbf", "#8a8a8a"
_MAX_BARS = 15


def draw(explained: Mapping[str, Any], *, title: str) -> bytes:
    """Give a PNG of a waterfall; what matters most stands on top, small parts are one bar.

    Args:
        explained: one of an answer's `explanations`.
        title: what stands above.
    """
    parts = [
        (f"{part['feature']} = {value_in_words(part['value'])}", part["contribution"])
        for part in explained["contributions"]
    ]
    named, rest = parts[:_MAX_BARS], parts[_MAX_BARS:]
    if rest:
        named.append((f"{len(rest)} other features", sum(part for _, part in rest)))
    figure = Figure(
        figsize=(_WIDTH_INCHES, _MARGIN_INCHES + _INCHES_PER_BAR * len(named)),
        layout="constrained",
    )
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    at = explained["base_score"]
    edges = [at]
    for place, (_, part) in enumerate(named):
        colour = _REST if part == 0 else _RAISES if part > 0 else _LOWERS
        plot.barh(place, part, left=at, color=colour, height=0.7)
        # Beside the bar's outer end, where no other bar begins.
        at_end = max(at, at + part)
        plot.annotate(
            f" {number(part, signed=True)}", (at_end, place), va="center", ha="left", fontsize=8
        )
        at += part
        edges.append(at)
    low, high = min(edges), max(edges)
    room = (high - low) or 1.0
    plot.set_xlim(low - 0.03 * room, high + 0.12 * room)
    plot.set_yticks(range(len(named)), [name for name, _ in named])
    plot.invert_yaxis()
    for score, style in ((explained["base_score"], ":"), (explained["score"], "-")):
        plot.axvline(score, color="black", linewidth=0.8, linestyle=style)
    plot.set_title(title)
    plot.set_xlabel(
        f"score: {number(explained['base_score'])} on average (dotted), "
        f"{number(explained['score'])} here"
    )
    plot.tick_params(labelsize=8)
    plot.grid(visible=True, axis="x", alpha=0.3)
    plot.set_axisbelow(True)
    image = BytesIO()
    figure.savefig(image, dpi=_DPI, format="png")
    return image.getvalue()
