from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.explanations import Attribution, explanation, number, value_in_words

NAMES = ("amount", "count_7d", "risk_7d")
USUAL = ((5.0, 120.0), (1.0, 1.0), None)


def explained(contributions, values=(230.5, 4.0, 0.5), names=NAMES, usual=USUAL):
    attribution = Attribution(
        score=0.02 + sum(contributions), base_score=0.02, contributions=contributions
    )
    return explanation(attribution, feature_names=names, values=values, usual=usual)


def test_what_matters_most_stands_first_with_the_value_as_it_was_looked_up():
    parts = explained((0.1, -0.5, 0.02))["contributions"]
    assert parts == [
        {"feature": "count_7d", "value": 4.0, "contribution": -0.5},
        {"feature": "amount", "value": 230.5, "contribution": 0.1},
        {"feature": "risk_7d", "value": 0.5, "contribution": 0.02},
    ]


def test_in_words_what_leads_comes_first():
    told = explained((0.5, -0.2, 0.001))["text"]
    assert told == (
        "Score 0.321, against 0.02 on average. Raises it: amount is 230.5, usually 5 to 120 "
        "(+0.5). Lowers it: count_7d is 4, usually 1 (-0.2). The other feature: +0.001."
    )
    told = explained((0.1, -0.5, 0.0))["text"]
    assert told.index("Lowers it: count_7d") < told.index("Raises it: amount")


def test_missing_features_are_named_and_have_no_value():
    nan = float("nan")
    row = explained((0.5, 0.1, 0.0), values=(nan, 4.0, nan))
    assert row["missing"] == ["amount", "risk_7d"]
    assert row["contributions"][0] == {"feature": "amount", "value": None, "contribution": 0.5}
    assert "Raises it: amount is missing (+0.5); count_7d is 4" in row["text"]
    assert row["text"].endswith("Missing: amount, risk_7d.")


def test_a_row_like_all_others_is_told_so():
    assert explained((0.0, 0.0, 0.0))["text"] == (
        "Score 0.02, against 0.02 on average. No feature moves it."
    )


def test_many_small_parts_are_told_together():
    names = tuple(f"f{n}" for n in range(20))
    told = explained((1.0,) + (0.01,) * 19, (1.0,) * 20, names, (None,) * 20)["text"]
    assert "Raises it: f0 is 1 (+1). The other 19 features together: +0.19." in told


def test_values_keep_the_digits_that_a_caller_sent():
    assert [value_in_words(v) for v in (230.5, 1234.5, 12345.6, 0.1, None)] == [
        "230.5", "1234", "12,346", "0.1", "missing",
    ]  # fmt: skip


def test_numbers_are_written_for_people():
    assert [number(n) for n in (0.9341, 0.0000123456, 230.54, 3249.25, -12.0, 0.0)] == [
        "0.934", "0.0000123", "231", "3,249", "-12", "0",
    ]  # fmt: skip
    assert number(0.5, signed=True) == "+0.5"
    assert number(-1234567.8, signed=True) == "-1,234,568"


@given(st.lists(st.floats(-1e6, 1e6), min_size=3, max_size=3))
def test_nothing_is_lost_in_the_order(contributions):
    row = explained(tuple(contributions))
    assert sorted(part["contribution"] for part in row["contributions"]) == sorted(contributions)
    assert {part["feature"] for part in row["contributions"]} == set(NAMES)
    assert row["text"].startswith("Score ")
