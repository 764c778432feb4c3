from pathlib import Path

import orjson
from hypothesis import given
from hypothesis import strategies as st

from deployed import deployment, version
from penstock.serving.deployments import (
    Deployment,
    deployment_path,
    find_deployment,
    line,
    record,
)
from penstock.settings import Settings

STEPS = st.lists(st.integers(1, 5), max_size=70)


def standing(number: int, *earlier: int) -> Deployment:
    return deployment(version(Path("v"), number), earlier=earlier)


def after(*versions: int) -> Deployment:
    """What stands after these were deployed, one behind the other."""
    now = None
    for number in versions:
        now = standing(number, *line(now, number))
    assert now is not None
    return now


class TestRecord:
    def test_what_was_written_is_found(self, tmp_path: Path):
        settings = Settings(project_root=tmp_path)
        assert find_deployment(settings, "spills") is None
        made = standing(3, 1, 2)
        record(settings, made)
        assert find_deployment(settings, "spills") == made

    def test_a_broken_file_is_none(self, tmp_path: Path):
        settings = Settings(project_root=tmp_path)
        record(settings, standing(3))
        deployment_path(settings, "spills").write_text("{")
        assert find_deployment(settings, "spills") is None

    def test_one_that_was_written_before_there_were_ways_back_is_found(self, tmp_path: Path):
        settings = Settings(project_root=tmp_path)
        record(settings, standing(3))
        file = deployment_path(settings, "spills")
        written = orjson.loads(file.read_bytes())
        del written["earlier"]
        file.write_bytes(orjson.dumps(written))
        assert find_deployment(settings, "spills").earlier == ()


class TestLine:
    def test_the_first_has_nothing_behind_it(self):
        assert line(None, 1) == ()

    def test_each_that_served_stands_behind_the_next(self):
        assert after(1, 2, 3).earlier == (1, 2)

    def test_the_same_version_again_is_no_step(self):
        assert after(1, 2, 2).earlier == (1,)

    def test_the_next_way_back_leads_further_back_and_not_forth_again(self):
        now = after(1, 2, 3)
        back = line(now, 2, is_way_back=True)
        assert back == (1,)
        assert line(standing(2, *back), 1, is_way_back=True) == ()

    def test_a_way_back_to_one_that_is_not_on_the_line_leaves_nothing_behind(self):
        assert line(standing(3, 1, 2), 9, is_way_back=True) == ()

    @given(STEPS.filter(bool))
    def test_a_step_and_its_way_back_leave_what_was(self, versions: list[int]):
        now = after(*versions)
        there = standing(6, *line(now, 6))
        assert line(there, now.version, is_way_back=True) == now.earlier[-49:]

    @given(STEPS.filter(bool))
    def test_it_never_grows_beyond_fifty(self, versions: list[int]):
        assert len(after(*versions).earlier) <= 50
