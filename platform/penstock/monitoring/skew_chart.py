"""Draws an audit: for each feature the share of its cells that differ, by reason."""

from io import BytesIO

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from penstock.monitoring.skew_policy import REASONS, Reason
from penstock.monitoring.skew_report import AuditReport

_WIDTH_INCHES, _INCHES_PER_BAR, _MARGIN_INCHES = 9.0, 0.28, 1.6
_DPI = 120
_COLOURS: dict[Reason, str] = {
    "late": "#7aa6da",
    "ahead": "#9b8ec4",
    "expired": "#b9b9b9",
    "resolution": "#8cc08a",
    "unexplained": "#c8442f",
}


def draw(report: AuditReport) -> bytes:
    """Give a PNG with a bar a feature; one without a bar was served as training would see it."""
    features = report.features[::-1]
    height = _MARGIN_INCHES + _INCHES_PER_BAR * len(features)
    figure = Figure(figsize=(_WIDTH_INCHES, height), layout="constrained")
    FigureCanvasAgg(figure)
    plot = figure.add_subplot()
    # By place: two services may have features of one name.
    places = range(len(features))
    left = [0.0] * len(features)
    for reason in REASONS:
        widths = [100 * f.num_by_reason.get(reason, 0) / f.num_cells for f in features]
        plot.barh(places, widths, left=left, color=_COLOURS[reason], label=reason)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    plot.set_yticks(places, [feature.feature for feature in features])
    plot.set_title(
        f"{report.use_case}: {report.num_predictions:,} predictions served, "
        "beside what training would see"
    )
    plot.set_xlabel("% of the cells that differ")
    plot.set_xlim(0, max(*left, 1.0) * 1.02)
    plot.tick_params(labelsize=8)
    plot.grid(visible=True, axis="x", alpha=0.3)
    plot.set_axisbelow(True)
    figure.legend(loc="outside lower center", ncols=len(REASONS), frameon=False, fontsize=8)
    image = BytesIO()
    figure.savefig(image, dpi=_DPI, format="png")
    return image.getvalue()
