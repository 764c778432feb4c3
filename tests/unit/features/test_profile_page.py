import re
from html.parser import HTMLParser

import polars as pl
import pytest

from payments import settings_in
from penstock.data import tables
from penstock.features.profile import profile
from penstock.features.profile_page import Heights, page, short

TABLE = "card_fraud.readings"
_VOID = {"meta", "rect", "line", "path", "br", "wbr"}


class Balanced(HTMLParser):
    """Sees that every element is closed where it was opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        if tag not in _VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in _VOID:
            assert self.open.pop() == tag


@pytest.fixture
def drawn(tmp_path):
    settings = settings_in(tmp_path)
    frame = pl.DataFrame(
        {
            "<script>alert(1)</script>": [1.0, 2.0, 2.5, None] * 50,
            "words": ["<i>", "&", "sun", "sun"] * 50,
            "counts": [0, 1, 2, 50] * 50,
        }
    )
    for part in (frame.head(100), frame):
        tables.commit(settings, TABLE, part, mode="overwrite")
    return page([profile(settings, TABLE, against=0)])


class TestPage:
    def test_it_is_whole_html_with_a_plot_for_each_column(self, drawn):
        parser = Balanced()
        parser.feed(drawn)
        assert parser.open == []
        assert drawn.count("<svg") == 3

    def test_it_runs_no_script_and_loads_nothing(self, drawn):
        parser = Balanced()
        parser.feed(drawn)
        assert parser.seen.isdisjoint({"script", "link", "img", "iframe", "object"})
        assert not re.search(r"https?://|url\(|@import", drawn)

    def test_names_and_values_of_the_data_are_escaped(self, drawn):
        assert "&lt;script&gt;" in drawn
        assert "<i>" not in drawn

    def test_the_axis_of_whole_numbers_ends_at_the_largest(self, tmp_path):
        settings = settings_in(tmp_path)
        tables.commit(settings, TABLE, pl.DataFrame({"x": range(1, 156)}), mode="append")
        drawn = page([profile(settings, TABLE)])
        assert ">1</text>" in drawn
        assert ">155</text>" in drawn

    def test_it_stays_small_with_a_hundred_columns(self, tmp_path):
        settings = settings_in(tmp_path)
        values = pl.Series(range(400)).cast(pl.Float64).sqrt()
        frame = pl.DataFrame({f"feature_{n}": values * (n + 1) for n in range(100)})
        tables.commit(settings, TABLE, frame, mode="append")
        assert len(page([profile(settings, TABLE)])) < 1_000_000


class TestHeights:
    def test_a_bar_with_nearly_all_rows_leaves_the_others_to_be_seen(self):
        heights = Heights.over([0.97, 0.01, 0.001, 0.001])
        assert heights.is_log
        assert heights.of(0.001) > 5
        assert heights.of(0.0) == 0.0

    def test_else_heights_are_in_proportion(self):
        heights = Heights.over([0.4, 0.2, 0.2])
        assert not heights.is_log
        assert heights.of(0.4) == pytest.approx(2 * heights.of(0.2))

    def test_nothing_at_all_can_be_drawn(self):
        assert Heights.over([0.0, 0.0]).of(0.0) == 0.0


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "-"),
        (True, "True"),
        (1234567, "1,234,567"),
        (0.00012345, "0.0001234"),
        ("2024-05-01T12:00:00+00:00", "2024-05-01"),
        ("x" * 100, "x" * 23 + "…"),
    ],
)
def test_values_are_shown_short(value, text):
    assert short(value) == text
