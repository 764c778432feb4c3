import base64
import re

from penstock.registry.card_page import draw_calibration, render_page

BINS = {"mean_scores": [0.02, 0.5, 0.9], "mean_labels": [0.01, 0.4, 0.95], "num_rows": [900, 50, 9]}


def page(card: str, **more) -> str:
    given = {"calibration": None, "title": "t", "standing": ["champion"], "footer": "signed"}
    return render_page(card, **given | more)


def test_the_calibration_is_a_picture_inside_the_page():
    text = page("## Calibration, on the test rows\n\n| a |\n|---|\n| 1 |\n", calibration=BINS)
    (content,) = re.findall(r'src="data:image/png;base64,([^"]+)"', text)
    assert base64.b64decode(content).startswith(b"\x89PNG")
    assert "http" not in text
    assert "<table>" in text


def test_nothing_in_a_card_becomes_markup():
    text = page("# <script>alert(1)</script>\n\n[x](javascript:alert(1))", standing=["<b>x</b>"])
    assert "<script>" not in text
    assert "<b>" not in text
    assert 'href="javascript' not in text


def test_numbers_are_drawn_as_probabilities_are():
    bins = {"mean_scores": [-3.0, 40.0], "mean_labels": [-2.0, 35.0], "num_rows": [10, 1]}
    assert draw_calibration(bins).startswith(b"\x89PNG")
