from hypothesis import given
from hypothesis import strategies as st

from penstock.features.join_planner import MAX_BUCKETS, MIN_BUCKETS, SideSize, choose_path

GIB = 1 << 30
LABELS = SideSize(name="labels", num_rows=1_466_282, row_bytes=32)
VIEW = SideSize(name="customer", num_rows=1_466_282, row_bytes=64)


def test_what_fits_is_one_task_and_the_reason_says_so():
    path = choose_path(LABELS, [VIEW, VIEW], budget_bytes=4 * GIB)
    assert (path.kind, path.num_buckets) == ("one task", 1)
    assert "within the budget of 4.00 GiB" in path.reason
    # What such a join was measured to take, without the process itself.
    assert 0.7 * GIB < path.estimated_bytes < 1.3 * GIB


def test_what_does_not_fit_goes_into_buckets_that_do():
    large = LABELS.model_copy(update={"num_rows": 20_000_000})
    path = choose_path(large, [VIEW, VIEW], budget_bytes=GIB)
    assert path.kind == "distributed"
    assert "20,000,000 label rows" in path.reason
    assert "over the budget of 1.00 GiB" in path.reason
    assert path.estimated_bytes / path.num_buckets <= GIB / 2


sizes = st.builds(
    SideSize, name=st.just("side"), num_rows=st.integers(0, 10**10), row_bytes=st.integers(1, 10**4)
)


@given(sizes, st.lists(sizes, max_size=4), st.integers(1 << 20, 1 << 40))
def test_a_larger_budget_never_needs_more_buckets(labels, views, budget_bytes):
    path = choose_path(labels, views, budget_bytes=budget_bytes)
    more = choose_path(labels, views, budget_bytes=2 * budget_bytes)
    assert more.num_buckets <= path.num_buckets
    assert path.num_buckets == 1 or MIN_BUCKETS <= path.num_buckets <= MAX_BUCKETS
