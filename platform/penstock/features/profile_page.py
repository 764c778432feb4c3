"""Draws table profiles as one HTML file: no scripts, nothing from the net, a few kB a column."""

import re
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from html import escape
from math import log1p

from penstock.data.histograms import Spread
from penstock.features.profile import ColumnProfile, TableProfile
from penstock.use_cases import split_name

_WIDTH, _HEIGHT = 320, 120
_LEFT, _TAIL = 2.0, 12.0
"""Margins left and right; a bar for what lies beyond the bins takes `_TAIL` on its side."""
_BAR_HEIGHT = 18
_SHARES = {"0.05": "q 0.05", "0.5": "median", "0.95": "q 0.95"}
_TEXT_WIDTH = 120
# One bar with most of the rows, and so many times the median of the others, hides them.
_MOST, _STEEP = 0.5, 20.0
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d")

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2530; --soft: #667085; --line: #d7dde5;
  --card: #fff; --page: #f5f7f9; --bar: #3b7ddd; --tail: #a9c7f2; --old: #d9480f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ee; --soft: #98a2b3; --line: #39424e;
  --card: #1c222b; --page: #12161c; --bar: #5b9bf3; --tail: #34537d; --old: #ff9d5c; } }
body { margin: 2rem auto; max-width: 74rem; padding: 0 1rem; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { margin: 2.2rem 0 .1rem; font-size: 1.2rem; }
p { margin: .2rem 0 1rem; color: var(--soft); }
.cards { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fill, minmax(21rem, 1fr)); }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .9rem; min-width: 0; }
.card h3 { margin: 0; font-size: .95rem; overflow-wrap: anywhere; }
.card p { margin: .1rem 0 .5rem; font-size: .8rem; }
.card.moved { border-color: var(--old); } .badge { color: var(--old); font-weight: 600; }
svg { width: 100%; height: auto; display: block; } .bar { fill: var(--bar); }
.tail { fill: var(--tail); } .old { fill: none; stroke: var(--old); stroke-width: 1.5; }
.axis { stroke: var(--line); } text { fill: var(--soft); font: 11px system-ui, sans-serif; }
table { width: 100%; border-collapse: collapse; margin-top: .4rem; font-size: .76rem;
  font-variant-numeric: tabular-nums; } th, td { padding: 0; text-align: right;
  white-space: nowrap; font-weight: 400; } th { color: var(--soft); }
th:first-child, td:first-child { text-align: left; } .was td { color: var(--old); }
"""


def page(profiles: Sequence[TableProfile]) -> str:
    """Give the whole page; names and values from the data are escaped."""
    sections = "\n".join(_section(profile) for profile in profiles)
    names = [profile.table.table for profile in profiles]
    title = f"Profile of {names[0] if len(names) == 1 else split_name(names[0])[0]}"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>\n{sections}\n</body></html>\n"
    )


def _section(profile: TableProfile) -> str:
    at, before = profile.table, profile.against
    lines = [f"{at.num_rows:,} rows, committed {at.committed_at:%Y-%m-%d %H:%M} UTC"]
    if before is not None:
        lines.append(
            f'<span class="badge">outlined: version {before.version}</span>, '
            f"{before.num_rows:,} rows, committed {before.committed_at:%Y-%m-%d %H:%M} UTC; "
            f"moved: {len(profile.moved)} of {len(profile.columns)} columns"
        )
    for what, names in (("new", profile.columns_added), ("gone", profile.columns_gone)):
        if names:
            lines.append(f"{what}: {escape(', '.join(names))}")
    # What moved is what somebody looks for: it comes first.
    moved = profile.moved
    rest = [column for column in profile.columns if column not in moved]
    cards = "\n".join(_card(column) for column in (*moved, *rest))
    return (
        f"<h2>{escape(at.table)} version {at.version}</h2>\n<p>{'<br>'.join(lines)}</p>\n"
        f'<div class="cards">\n{cards}\n</div>'
    )


def _card(column: ColumnProfile) -> str:
    held = column.statistics
    distinct = f"{held.distinct:,}" if held.distinct_is_exact else f"about {held.distinct:,}"
    facts = [short_type(held.dtype)]
    if column.role != "value":
        facts.append(column.role)
    facts.append(f"{distinct} distinct")
    now, before = column.missing_share, column.missing_share_before
    if now or before:
        facts.append(f"{now:.2%} missing")
        if before is not None:
            facts[-1] += f' <span class="badge">({before:.2%})</span>'
    # A name may break after its underscores, not within its words.
    head = f"<h3>{escape(column.name).replace('_', '_<wbr>')}</h3>"
    if column.has_moved:
        shift = "" if column.shift is None else f" by {column.shift:.2f}"
        facts.append(f'<span class="badge">moved{shift}</span>')
    drawing = _values(column) if column.spread.common else _histogram(column)
    kind = "card moved" if column.has_moved else "card"
    return f'<div class="{kind}">{head}<p>{" · ".join(facts)}</p>{drawing}{_numbers(column)}</div>'


def _numbers(column: ColumnProfile) -> str:
    held, before = column.statistics, column.statistics_before
    if not held.quantiles:
        return ""
    # Three dates are as wide as five numbers.
    shares = ("0.5",) if held.dtype.startswith("Date") else ("0.05", "0.5", "0.95")
    labels = ["min", *(_SHARES[share] for share in shares), "max"]
    rows = ["".join(f"<th>{label}</th>" for label in labels)]
    for side in (held, before):
        if side is not None:
            values = (side.min, *(side.quantiles.get(share) for share in shares), side.max)
            rows.append("".join(f"<td>{escape(short(value))}</td>" for value in values))
    head, now, *was = rows
    old = "".join(f'<tr class="was">{cells}</tr>' for cells in was)
    return f"<table><tr>{head}</tr><tr>{now}</tr>{old}</table>"


def _histogram(column: ColumnProfile) -> str:
    spread, older = column.spread, column.spread_before
    if not spread.counts:
        return ""
    shares = _shares(spread)
    older_shares = _shares(older) if older is not None and older.counts else []
    # Beyond the bins there is a bar of its own on either side, if anything is there.
    tails = [any(side[end] > 0 for side in (shares, older_shares) if side) for end in (0, -1)]
    left = _LEFT + (_TAIL if tails[0] else 0)
    right = _WIDTH - _LEFT - (_TAIL if tails[1] else 0)
    step = (right - left) / len(spread.counts)
    heights = Heights.over([*shares, *older_shares])
    parts = []
    for number, share in enumerate(shares):
        is_tail = number in (0, len(shares) - 1)
        if not share:
            continue
        x = left + (number - 1) * step
        width = max(step - 0.6, 0.4)
        if is_tail:
            x, width = (_LEFT if number == 0 else right + 4), _TAIL - 4
        height = heights.of(share)
        parts.append(
            f'<rect class="{"tail" if is_tail else "bar"}" x="{x:.1f}" y="{_HEIGHT - height:.1f}" '
            f'width="{width:.1f}" height="{height:.1f}"><title>'
            f"{escape(_bin_label(column, number))}: {share:.2%}</title></rect>"
        )
    if older_shares:
        parts.append(_outline(older_shares[1:-1], heights, left, step))
    low, high = (_edge_text(column, edge) for edge in (spread.edges[0], spread.edges[-1]))
    scale = ", bars on a log scale" if heights.is_log else ""
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT + 16}" role="img" '
        f'aria-label="histogram of {escape(column.name)}">{"".join(parts)}'
        f'<line class="axis" x1="0" x2="{_WIDTH}" y1="{_HEIGHT}" y2="{_HEIGHT}"/>'
        f'<text x="{left:.0f}" y="{_HEIGHT + 13}">{escape(low)}</text>'
        f'<text x="{_WIDTH / 2}" y="{_HEIGHT + 13}" text-anchor="middle">'
        f"tallest {max([*shares, *older_shares]):.1%}{scale}</text>"
        f'<text x="{right:.0f}" y="{_HEIGHT + 13}" text-anchor="end">{escape(high)}</text></svg>'
    )


def _outline(shares: Sequence[float], heights: "Heights", left: float, step: float) -> str:
    path = [f"M{left:.1f},{_HEIGHT}"]
    for number, share in enumerate(shares):
        y = _HEIGHT - heights.of(share)
        path.append(f"V{y:.1f}H{left + (number + 1) * step:.1f}")
    return f'<path class="old" d="{"".join(path)}V{_HEIGHT}"/>'


def _values(column: ColumnProfile) -> str:
    """Bars of the most frequent values, each beside its name."""
    present = max(column.statistics.count - column.statistics.nulls, 1)
    before: dict[str, float] = {}
    if column.spread_before is not None and column.statistics_before is not None:
        held = column.statistics_before
        present_before = max(held.count - held.nulls, 1)
        before = {v.value: v.count / present_before for v in column.spread_before.common}
    tallest = max([*(v.count / present for v in column.spread.common), *before.values()])
    room = _WIDTH - _TEXT_WIDTH - 50
    parts = []
    for number, value in enumerate(column.spread.common):
        share, y = value.count / present, number * _BAR_HEIGHT
        width = room * share / tallest
        name = value.value if len(value.value) <= 20 else value.value[:19] + "…"
        parts.append(
            f'<text x="{_TEXT_WIDTH - 6}" y="{y + 13}" text-anchor="end">{escape(name)}</text>'
            f'<rect class="bar" x="{_TEXT_WIDTH}" y="{y + 3}" width="{max(width, 0.5):.1f}" '
            f'height="{_BAR_HEIGHT - 5}"><title>{escape(value.value)}: {value.count:,}</title>'
            f'</rect><text x="{_TEXT_WIDTH + width + 5:.1f}" y="{y + 13}">{share:.1%}</text>'
        )
        if value.value in before:
            x = _TEXT_WIDTH + room * before[value.value] / tallest
            parts.append(f'<path class="old" d="M{x:.1f},{y + 1}V{y + _BAR_HEIGHT - 1}"/>')
    height = len(column.spread.common) * _BAR_HEIGHT
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="most frequent values of {escape(column.name)}">{"".join(parts)}</svg>'
    )


class Heights:
    """How tall a share is drawn; by its logarithm where one bar would hide the others."""

    def __init__(self, tallest: float, smallest: float, *, is_log: bool) -> None:
        self._tallest, self._smallest, self.is_log = tallest, smallest, is_log

    @classmethod
    def over(cls, shares: Sequence[float]) -> "Heights":
        """Choose the scale for all shares of one drawing."""
        present = sorted(share for share in shares if share > 0) or [1.0]
        others = present[:-1] or present
        is_log = present[-1] > max(_MOST, _STEEP * others[len(others) // 2])
        return cls(present[-1], present[0], is_log=is_log)

    def of(self, share: float) -> float:
        """Give the height in the drawing's units."""
        if share <= 0:
            return 0.0
        if self.is_log:
            share, top = log1p(share / self._smallest), log1p(self._tallest / self._smallest)
            return (_HEIGHT - 6) * share / top
        return (_HEIGHT - 6) * share / self._tallest


def _shares(spread: Spread) -> list[float]:
    """The shares below the bins, in each bin, and above them."""
    counts = [spread.below, *spread.counts, spread.above]
    total = sum(counts)
    return [count / total if total else 0.0 for count in counts]


def _bin_label(column: ColumnProfile, number: int) -> str:
    edges = column.spread.edges
    if number == 0:
        return f"below {_edge_text(column, edges[0])}"
    if number == len(edges):
        return f"from {_edge_text(column, edges[-1])} on"
    low, high = edges[number - 1], edges[number]
    if column.statistics.dtype.startswith(("Int", "UInt")):
        first, last = round(low + 0.5), round(high - 0.5)
        return f"{first:,}" if first == last else f"{first:,} to {last:,}"
    return f"{_edge_text(column, low)} to {_edge_text(column, high)}"


def _edge_text(column: ColumnProfile, edge: float) -> str:
    """The edge in the column's own kind; bins of whole numbers begin half a number earlier."""
    dtype = column.statistics.dtype
    if dtype.startswith("Datetime"):
        return f"{_EPOCH + timedelta(microseconds=edge):%Y-%m-%d}"
    if dtype == "Date":
        return (_EPOCH.date() + timedelta(days=round(edge))).isoformat()
    if dtype.startswith(("Int", "UInt")):
        if edge == column.spread.edges[0]:
            return f"{round(edge + 0.5):,}"
        # The last bin may be wider than what is left for it.
        largest = column.statistics.max
        whole = round(edge - 0.5)
        return f"{min(whole, largest) if isinstance(largest, int) else whole:,}"
    return f"{edge:,.4g}"


def short_type(dtype: str) -> str:
    """A column's type in one word."""
    return "timestamp" if dtype.startswith("Datetime") else dtype.lower()


def short(value: object) -> str:
    """A value as one short text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    text = str(value)
    if _MOMENT.match(text):
        text = text[:10]
    return text if len(text) <= 24 else text[:23] + "…"
