"""What a use case names by its path."""

import pytest

from penstock.errors import DeclarationError, NotFoundError
from penstock.training.estimators.own_classes import call_with_options


class Known:
    """Of a type that pydantic has no schema for."""


def made(first: int, width: int = 1, *, rate: float = 0.5, kind: "Known | None" = None) -> tuple:
    if rate < 0:
        raise ValueError("rate below 0")
    return first, width, rate, kind


class TestCallWithOptions:
    def test_options_come_after_what_is_given_first(self):
        found = call_with_options(made, {"width": 3, "rate": 1}, 7, path="a:made")
        assert found == (7, 3, 1, None)

    def test_an_option_that_there_is_not_is_told_with_the_nearest(self):
        with pytest.raises(NotFoundError, match="did you mean 'width'"):
            call_with_options(made, {"witdh": 3}, 7, path="a:made")

    def test_what_is_given_first_is_no_option(self):
        with pytest.raises(NotFoundError, match="first"):
            call_with_options(made, {"first": 3}, 7, path="a:made")

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"width": "3"}, "option width of a:made is '3'"),
            ({"width": 2.5}, "option width of a:made is 2.5"),
            ({"rate": -1.0}, "rate below 0"),
        ],
    )
    def test_a_value_that_does_not_do_is_told(self, options, words):
        with pytest.raises(DeclarationError, match=words):
            call_with_options(made, options, 7, path="a:made")

    def test_any_option_goes_where_any_is_taken(self):
        assert call_with_options(lambda **given: given, {"a": 1}, path="a:b") == {"a": 1}
