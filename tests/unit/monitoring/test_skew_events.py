from hypothesis import given
from hypothesis import strategies as st

from penstock.monitoring.skew_events import _at_most


@given(versions=st.lists(st.integers(-1, 10_000), max_size=200), number=st.integers(1, 20))
def test_versions_are_only_rounded_down_and_to_few(versions: list[int], number: int):
    found = _at_most(versions, number)
    assert len(found) == len(versions)
    assert len(set(found)) <= number
    assert all(few <= version for few, version in zip(found, versions, strict=True))
    if len(set(versions)) <= number:
        assert found == versions
