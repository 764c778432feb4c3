import os
import time
from datetime import UTC, datetime, timedelta

import polars as pl
import pytest

from penstock.errors import IntegrityError
from penstock.features.pinned_rows import TimeSlice
from penstock.serving.score_parts import plan_parts, remove_abandoned

BEGIN = datetime(2024, 1, 1, tzinfo=UTC)
SLICES = [
    TimeSlice(start=BEGIN + timedelta(n), end=BEGIN + timedelta(n + 1), num_rows=3)
    for n in range(4)
]


def plan(root, **changes):
    known = {"slices": SLICES, "feature_table_versions": {"a.b": 1}, "definition": "one"}
    return plan_parts(root, **{**known, **changes})


def rows(number):
    return pl.DataFrame({"id": [3 * number + n for n in range(3)], "score": [0.5, None, 0.25]})


@pytest.fixture
def parts(tmp_path):
    made = plan(tmp_path / "scoring")
    made.prepare()
    return made


class TestParts:
    def test_what_was_published_is_no_longer_missing_and_is_read_in_order(self, parts):
        for number in (2, 0, 3):
            parts.publish(number, rows(number))
        assert parts.missing() == [1]
        parts.publish(1, rows(1))
        assert parts.missing() == []
        assert parts.reader().read_all()["id"].to_pylist() == list(range(12))

    def test_a_torn_temporary_file_is_no_part_and_is_cleared_away(self, parts):
        (parts.folder / "000001.0123").write_bytes(b"ARROW1")
        assert 1 in parts.missing()
        parts.prepare()
        assert list(parts.folder.iterdir()) == []

    def test_another_plan_has_another_folder_and_clears_this_one_away(self, parts, tmp_path):
        parts.publish(0, rows(0))
        same = plan(tmp_path / "scoring")
        same.prepare()
        assert same.missing() == [1, 2, 3]
        changes = (
            {"slices": SLICES[:2]},
            {"feature_table_versions": {"a.b": 2}},
            {"definition": "two"},
        )
        folders = {plan(tmp_path / "scoring", **change).folder for change in changes}
        assert len(folders | {parts.folder}) == 4
        other = plan(tmp_path / "scoring", definition="two")
        other.prepare()
        assert list(parts.folder.parent.iterdir()) == [other.folder]

    @pytest.mark.parametrize("content", [b"", b"ARROW1 and no more", None])
    def test_a_part_that_was_damaged_later_is_named(self, parts, content):
        for number in range(4):
            parts.publish(number, rows(number))
        if content is None:
            parts.publish(2, rows(2).head(2))
        else:
            (parts.folder / "000002.arrow").write_bytes(content)
        with pytest.raises(IntegrityError, match=r"000002\.arrow"):
            parts.reader().read_all()


class TestRemoveAbandoned:
    def test_only_what_nobody_went_on_with_for_a_week_is_removed(self, tmp_path):
        root = tmp_path / "scoring"
        remove_abandoned(root)
        old, young = plan(root / "old"), plan(root / "young")
        for each in (old, young):
            each.prepare()
        eight_days_ago_s = time.time() - 8 * 86_400
        for path in (old.folder, old.folder.parent):
            os.utime(path, (eight_days_ago_s, eight_days_ago_s))
        remove_abandoned(root)
        assert list(root.iterdir()) == [young.folder.parent]
