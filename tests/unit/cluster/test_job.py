import pytest

from penstock.cluster import job, markers
from penstock.errors import GateRefusedError
from penstock.records import Record


class Outcome(Record):
    num_rows: int


@pytest.fixture
def lines() -> list[str]:
    return []


class TestReporter:
    def test_a_hundred_thousand_reports_make_few_lines(self, lines):
        report = job.Reporter(for_machine=True, write=lines.append)
        for done in range(100_000):
            report.progress("read", done, 100_000)
        report.progress("read", 100_000, 100_000)
        assert len(lines) < 40
        assert markers.read(lines[0]).done == 0
        assert markers.read(lines[-1]).done == 100_000

    def test_a_new_step_is_told_at_once(self, lines):
        report = job.Reporter(for_machine=True, write=lines.append)
        for step in ("read", "check", "write"):
            report.progress(step, 0)
        assert [markers.read(line).step for line in lines] == ["read", "check", "write"]

    def test_by_hand_a_person_reads_words(self, lines):
        report = job.Reporter(for_machine=False, write=lines.append)
        report.progress("read", 1200, 4000)
        report.send(markers.ResultMarker(result={"num_rows": 7}))
        report.send(markers.from_error(GateRefusedError("too low", next_step="train longer")))
        assert lines == [
            "read: 1,200 of 4,000 rows",
            "result:\n  num_rows: 7",
            "error: too low. train longer",
        ]


def test_a_record_is_a_result_too(lines):
    report = job.Reporter(for_machine=True, write=lines.append)
    job.RunningJob("any", None, "id", report, None).finish(Outcome(num_rows=3))
    assert markers.read(lines[0]).result == {"num_rows": 3}


class TestWrappedErrors:
    def test_what_a_ray_task_raised_is_found_in_its_wrapper(self):
        from ray.exceptions import RayTaskError

        inner = GateRefusedError("no")
        wrapper = RayTaskError("f", "trace", inner).as_instanceof_cause()
        assert isinstance(wrapper, GateRefusedError)
        assert job._ours(wrapper) is inner

    def test_one_that_somebody_raised_from_ours_is_ours(self):
        inner = GateRefusedError("no")
        outer = RuntimeError("outer")
        outer.__cause__ = inner
        assert job._ours(outer) is inner

    def test_any_other_is_not(self):
        assert job._ours(ValueError("x")) is None
