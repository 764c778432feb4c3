"""The model card as one HTML file: the signed Markdown, with its calibration drawn."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from penstock.files import write_whole
from penstock.registry.package import CARD_FILE, VerifiedPackage

_INCHES = (5.0, 4.0)
_DPI = 120
_HEADING = "<h2>Calibration, on the test rows</h2>"
_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #1b1f24; background: #fff; }
table { border-collapse: collapse; margin: .5rem 0; display: block; overflow-x: auto; }
th, td { border: 1px solid #d0d7de; padding: .25rem .6rem; text-align: left; }
th { background: #f6f8fa; }
code { background: #f6f8fa; padding: .1rem .3rem; overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; }
h2 { border-bottom: 1px solid #d0d7de; padding-bottom: .2rem; margin-top: 2rem; }
img { max-width: 100%; }
footer { color: #57606a; margin-top: 3rem; font-size: 13px; }
"""


def write_card(package: VerifiedPackage, folder: Path, *, standing: Sequence[str]) -> list[Path]:
    """Write `<model>-<version>.md` and `.html` from the bytes that were verified.

    Args:
        package: the version.
        folder: where to; made when absent.
        standing: what is so today and no part of what was signed, a sentence each.
    """
    manifest = package.manifest
    stem = f"{manifest.model}-{manifest.version}"
    card = package.files[CARD_FILE]
    page = render_page(
        card.decode(),
        package.training.get("calibration"),
        title=f"{manifest.model} version {manifest.version}",
        standing=standing,
        footer=f"Signed {manifest.created:%Y-%m-%d %H:%M} UTC by {manifest.key_id}; "
        f"digest {manifest.digest}",
    )
    files = [folder / f"{stem}.md", folder / f"{stem}.html"]
    write_whole(files[0], card)
    write_whole(files[1], page.encode())
    return files


def render_page(
    card: str,
    calibration: Mapping[str, Any] | None,
    *,
    title: str,
    standing: Sequence[str],
    footer: str,
) -> str:
    """Turn the card into a page that needs nothing beside it."""
    from markdown_it import MarkdownIt

    # Names and values in a card come from data: none of them may become markup.
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(card)
    if calibration:
        body = body.replace(_HEADING, f"{_HEADING}\n{_picture(calibration)}")
    today = "".join(f"<li>{html.escape(each)}</li>" for each in standing)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n{body}"
        f"<h2>Where it stands now, not signed</h2><ul>{today}</ul>\n"
        f"<footer>{html.escape(footer)}</footer>\n</body></html>\n"
    )


def draw_calibration(calibration: Mapping[str, Any]) -> bytes:
    """Draw mean label over mean score, a point a bin, its area by the bin's rows, as PNG."""
    import numpy as np
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    x, y = calibration["mean_scores"], calibration["mean_labels"]
    counts = np.asarray(calibration["num_rows"], dtype=float)
    figure = Figure(figsize=_INCHES, layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    low, high = min([0.0, *x, *y]), max([*x, *y])
    plot.plot([low, high], [low, high], color="0.7", linewidth=1, linestyle="--")
    plot.plot(x, y, color="C0", linewidth=1)
    # Bins differ by orders of magnitude: the logarithm leaves the smallest one visible.
    plot.scatter(x, y, s=12 + 18 * np.log10(counts), color="C0")
    for place, (a, b, count) in enumerate(zip(x, y, counts, strict=True)):
        offset = (6, -12) if place % 2 else (6, 6)
        plot.annotate(
            f"{int(count):,}",
            (a, b),
            xytext=offset,
            textcoords="offset points",
            size=7,
            bbox={"boxstyle": "round,pad=0.1", "fc": "white", "ec": "none", "alpha": 0.8},
        )
    plot.set(title="Calibration", xlabel="mean score of the bin", ylabel="mean label of the bin")
    plot.margins(0.12)
    plot.grid(visible=True, alpha=0.3)
    content = io.BytesIO()
    figure.savefig(content, dpi=_DPI, format="png")
    return content.getvalue()


def _picture(calibration: Mapping[str, Any]) -> str:
    content = base64.b64encode(draw_calibration(calibration)).decode()
    return (
        f'<p><img alt="Mean label over mean score, by bin, with rows" '
        f'src="data:image/png;base64,{content}"></p>'
    )
