from hypothesis import given
from hypothesis import strategies as st

from penstock.serving.memory_policy import Held, make_room

MIB = 1 << 20


def held(model: str, size: int, used_s: float, *, is_busy: bool = False) -> Held:
    return Held(model=model, num_bytes=size * MIB, used_s=used_s, is_busy=is_busy)


class TestMakeRoom:
    def test_what_fits_stays(self):
        eviction = make_room([held("a", 3, 1), held("b", 3, 2)], max_bytes=6 * MIB)
        assert eviction.models == ()

    def test_who_was_asked_longest_ago_goes_first(self):
        models = [held("late", 3, 9), held("early", 3, 1), held("middle", 3, 5)]
        eviction = make_room(models, max_bytes=7 * MIB, coming_bytes=3 * MIB)
        assert eviction.models == ("early", "middle")
        assert eviction.reason == "12 MiB of 7 MiB would be used"

    def test_who_is_waited_for_stays(self):
        models = [held("asked", 3, 1, is_busy=True), held("idle", 3, 2)]
        assert make_room(models, max_bytes=3 * MIB).models == ("idle",)

    def test_what_is_larger_than_all_is_let_in_alone(self):
        assert make_room([held("a", 1, 1)], max_bytes=MIB, coming_bytes=9 * MIB).models == ("a",)


models = st.lists(
    st.tuples(st.integers(0, 50), st.integers(0, 100), st.booleans()), max_size=12
).map(
    lambda drawn: [
        held(f"m{number}", size, used_s, is_busy=is_busy)
        for number, (size, used_s, is_busy) in enumerate(drawn)
    ]
)


@given(models, st.integers(0, 300), st.integers(0, 100))
def test_no_more_goes_than_must_and_none_before_one_that_was_asked_earlier(
    known: list[Held], max_mib: int, coming_mib: int
):
    limits = {"max_bytes": max_mib * MIB, "coming_bytes": coming_mib * MIB}
    gone = make_room(known, **limits).models
    by_name = {each.model: each for each in known}
    stays = [each for each in known if each.model not in gone]
    used = coming_mib * MIB + sum(each.num_bytes for each in stays)
    assert not any(by_name[model].is_busy for model in gone)
    # It fits, or whatever stays is waited for.
    assert used <= max_mib * MIB or all(each.is_busy for each in stays)
    if gone:
        # Without the last one it would not.
        assert used + by_name[gone[-1]].num_bytes > max_mib * MIB
        last_s = max(by_name[model].used_s for model in gone)
        assert all(each.is_busy or each.used_s >= last_s for each in stays)
