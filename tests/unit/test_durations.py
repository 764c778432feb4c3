import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.durations import as_duration, parse_duration
from penstock.errors import UserError


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("20m", 1200),
        ("1h30m", 5400),
        ("1h0m5s", 3605),
        ("14d", 1_209_600),
        ("1d1h", 90_000),
    ],
)
def test_it_is_read_as_people_write_it(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "20", "0s", "m", "-5m", "1.5h", "5m1h", "1h1d"])
def test_what_is_none_is_refused(text):
    with pytest.raises(UserError, match="no duration"):
        parse_duration(text)


@given(st.integers(120, 10**6))
def test_what_is_written_reads_back(seconds):
    assert parse_duration(as_duration(seconds)) == seconds
