"""Parameters of which a few are tried in every run, and the others by `scripts/test --slow`."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def some_slow(values: Iterable[Any], *, in_every_run: Collection[Any]) -> list[Any]:
    """Give all values as parameters; those that are not in every run are marked `slow`."""
    return [
        value if value in in_every_run else pytest.param(value, marks=pytest.mark.slow)
        for value in values
    ]
