import pytest

from penstock.features.stream_rebuild import why_rebuild
from penstock.features.stream_table import Landed

MARKER = {"version": 5, "digest": "d", "flush": 3, "generation": 1}
LANDED = Landed(version=5, flush=3)


class TestWhyRebuild:
    def test_states_that_are_the_tables_stay(self):
        assert why_rebuild(MARKER, "d", LANDED, is_ours=True) is None
        # It died before that flush landed.
        assert why_rebuild(MARKER | {"flush": 4}, "d", LANDED, is_ours=True) is None

    @pytest.mark.parametrize(
        ("marker", "is_ours", "reason"),
        [
            ({}, True, "no states"),
            (MARKER | {"version": None}, True, "broken off"),
            (MARKER | {"digest": "other"}, True, "declarations"),
            (MARKER | {"flush": 2}, True, "lost its last writes"),
            (MARKER, False, "somebody else"),
        ],
    )
    def test_others_are_made_again_for_a_reason(self, marker, is_ours, reason):
        assert reason in (why_rebuild(marker, "d", LANDED, is_ours=is_ours) or "")
