import io
from types import SimpleNamespace

import pytest
from rich.console import Console

from penstock.cluster import jobs, markers
from penstock.errors import BusyError, ClusterError, JobFailedError, NotFoundError
from penstock.settings import Settings


class ScriptedClient:
    """Stands where Ray's client stands: a job that writes more at each look, then ends."""

    def __init__(self, logs: list[str], end: str, *, code: int | None = None, message: str = ""):
        self._logs, self._end = logs, end
        self._info = SimpleNamespace(driver_exit_code=code, message=message)
        self._looks = 0

    def get_job_status(self, _id: str) -> SimpleNamespace:
        self._looks = min(self._looks + 1, len(self._logs))
        return SimpleNamespace(value=self._end if self._looks == len(self._logs) else "RUNNING")

    def get_job_logs(self, _id: str) -> str:
        return self._logs[self._looks - 1]

    def get_job_info(self, _id: str) -> SimpleNamespace:
        return self._info


class Silent(ScriptedClient):
    """A job about which Ray does not answer some times."""

    def __init__(self, logs: list[str], end: str, *, error: Exception, times: int):
        super().__init__(logs, end)
        self._error, self._times = error, times

    def get_job_status(self, _id: str) -> SimpleNamespace:
        self._times -= 1
        if self._times >= 0:
            raise self._error
        return super().get_job_status(_id)

    def get_job_logs(self, _id: str) -> str:
        self._times -= 1
        if self._times == -3:
            raise self._error
        return super().get_job_logs(_id)


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(jobs, "_FIRST_POLL_S", 0.0)


def follow(client: ScriptedClient) -> tuple[dict, str]:
    output = io.StringIO()
    follower = jobs.Follower(client, "job-1", Console(file=output, width=120), title="starting")
    try:
        return follower.follow(), output.getvalue()
    except Exception as error:
        error.add_note(output.getvalue())
        raise


RESULT = markers.write(markers.ResultMarker(result={"num_rows": 3}))


class TestFollow:
    def test_each_line_is_shown_once_and_whole(self):
        client = ScriptedClient(
            ["one\ntw", "one\ntwo\nthr", f"one\ntwo\nthree\n{RESULT}\n"], "SUCCEEDED"
        )
        result, shown = follow(client)
        assert result == {"num_rows": 3}
        assert shown.splitlines() == ["one", "two", "three"]

    def test_a_last_line_without_its_end_counts(self):
        assert follow(ScriptedClient([f"one\n{RESULT}"], "SUCCEEDED"))[0] == {"num_rows": 3}

    def test_rays_own_lines_are_not_shown(self):
        log = (
            "2026-01-01 INFO job_manager.py:581 -- Runtime env is setting up.\n"
            "Running entrypoint for job x: python jobs/x.py\nhello\n"
        )
        assert follow(ScriptedClient([log], "SUCCEEDED"))[1] == "hello\n"

    def test_progress_is_one_line_at_begin_and_end_where_no_terminal_is(self):
        marks = [
            markers.ProgressMarker(step="read", done=n, total=9, unit="rows") for n in range(10)
        ]
        log = "\n".join(map(markers.write, marks))
        assert follow(ScriptedClient([log], "SUCCEEDED"))[1].splitlines() == [
            "read: 0 of 9 rows",
            "read: 9 of 9 rows",
        ]

    def test_the_jobs_own_error_is_raised_again(self):
        log = markers.write(markers.from_error(BusyError("held by 7", next_step="wait")))
        with pytest.raises(BusyError, match=r"held by 7. Next: wait") as caught:
            follow(ScriptedClient([log], "FAILED", code=75))
        assert caught.value.exit_code == 75

    @pytest.mark.parametrize(("code", "expected"), [(5, 5), (None, 1), (-9, 137), (0, 1)])
    def test_a_job_that_fails_without_a_word_gives_its_exit_code(self, code, expected):
        client = ScriptedClient(["x\n"], "FAILED", code=code, message="first\nKilled\n")
        with pytest.raises(JobFailedError, match="job-1 failed: Killed") as caught:
            follow(client)
        assert caught.value.exit_code == expected

    def test_one_stopped_by_somebody_is_not_a_success(self):
        with pytest.raises(JobFailedError, match="was stopped"):
            follow(ScriptedClient(["x\n"], "STOPPED"))

    @pytest.mark.parametrize("error", [RuntimeError("500"), ConnectionError("refused")])
    def test_questions_without_an_answer_are_asked_again(self, monkeypatch, error):
        monkeypatch.setattr(jobs, "_RETRY_S", 0.0)
        client = Silent(["one\n", f"one\n{RESULT}\n"], "SUCCEEDED", error=error, times=3)
        result, shown = follow(client)
        assert result == {"num_rows": 3}
        assert shown == "one\n"

    def test_a_ray_that_stays_silent_is_an_error_that_names_the_job(self, monkeypatch):
        monkeypatch.setattr(jobs, "_RETRY_S", 0.0)
        monkeypatch.setattr(jobs, "_SILENCE_S", 0.05)
        client = Silent(["one\n"], "SUCCEEDED", error=ConnectionError("refused"), times=1 << 30)
        with pytest.raises(ClusterError, match=r"no more of job job-1: refused"):
            follow(client)


class Cluster:
    """Stands where Ray's client stands for `run_job`: takes jobs, and is interrupted."""

    def __init__(self, interrupt_at: str, arrives_after: int):
        self.stopped: list[str] = []
        self.taken: dict[str, object] = {}
        self._interrupt_at, self._arrives_after = interrupt_at, arrives_after

    def submit_job(self, *, submission_id: str, **job: object) -> None:
        self.taken = {"submission_id": submission_id, **job}
        if self._interrupt_at == "submit":
            raise KeyboardInterrupt

    def get_job_status(self, submission_id: str) -> SimpleNamespace:
        if submission_id in self.stopped:
            return SimpleNamespace(value="STOPPED")
        raise KeyboardInterrupt

    def stop_job(self, submission_id: str) -> None:
        if self._arrives_after:
            self._arrives_after -= 1
            raise RuntimeError("404: no such job")
        self.stopped.append(submission_id)


@pytest.fixture
def one_job(tmp_path):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs" / "count.py").touch()
    return tmp_path


class TestInterrupt:
    @pytest.mark.parametrize(("interrupt_at", "arrives_after"), [("submit", 3), ("follow", 0)])
    def test_ctrl_c_stops_the_job_from_its_submission_on(
        self, one_job, monkeypatch, interrupt_at, arrives_after
    ):
        cluster = Cluster(interrupt_at, arrives_after)
        monkeypatch.setattr(jobs, "submission_client", lambda _: cluster)
        with pytest.raises(JobFailedError, match="stopped on your request") as caught:
            jobs.run_job(Settings(project_root=one_job), "count", [])
        assert caught.value.exit_code == 130
        assert cluster.stopped == [cluster.taken["submission_id"]]

    @pytest.mark.parametrize(
        ("address", "options", "num_cpus"),
        [(None, {}, 0), ("http://h:1", {}, 1), ("http://h:1", {"is_heavy": False}, 0)],
    )
    def test_on_another_ray_a_heavy_job_asks_for_a_cpu_and_so_leaves_the_head(
        self, one_job, monkeypatch, address, options, num_cpus
    ):
        cluster = Cluster("submit", 0)
        monkeypatch.setattr(jobs, "submission_client", lambda _: cluster)
        settings = Settings(project_root=one_job, ray={"address": address})
        with pytest.raises(JobFailedError):
            jobs.run_job(settings, "count", [], **options)
        assert cluster.taken["entrypoint_num_cpus"] == num_cpus


class TestSubmit:
    def test_the_same_request_is_the_same_job(self):
        assert jobs.submission_id_of("train", "r1") == jobs.submission_id_of("train", "r1")
        assert jobs.submission_id_of("train", "r1") != jobs.submission_id_of("train", "r2")
        assert jobs.submission_id_of("train", "r1") != jobs.submission_id_of("score", "r1")
        assert jobs.submission_id_of("a.b.probe", "r1").startswith("probe-")

        assert (
            jobs.submission_id_of("train", "r1", 2) == jobs.submission_id_of("train", "r1") + "-2"
        )

    @pytest.mark.parametrize(
        ("status", "is_it"),
        [("PENDING", True), ("RUNNING", True), ("SUCCEEDED", True), ("FAILED", False), ("STOPPED", False)],
    )  # fmt: skip
    def test_a_job_of_that_id_is_the_requests_unless_it_ended_badly(self, status, is_it):
        class Refusing:
            def submit_job(self, **_: object) -> None:
                raise RuntimeError("Job with submission_id x already exists.")

            def get_job_status(self, _id: str) -> SimpleNamespace:
                return SimpleNamespace(value=status)

        assert jobs._submit(Refusing(), "x", {}) is is_it

    @pytest.mark.parametrize("error", [RuntimeError("no room"), ConnectionError("no room")])
    def test_any_other_refusal_is_an_error(self, error):
        class Refusing:
            def submit_job(self, **_: object) -> None:
                raise error

        with pytest.raises(ClusterError, match="no room"):
            jobs._submit(Refusing(), "x", {})

    def test_an_unknown_script_is_named_with_the_nearest_one(self, tmp_path):
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "ingest.py").touch()
        with pytest.raises(NotFoundError, match="did you mean 'ingest'"):
            jobs.run_job(Settings(project_root=tmp_path), "injest", [])

    def test_with_no_ray_up_it_says_how_to_start_one(self, tmp_path):
        (tmp_path / "jobs").mkdir()
        (tmp_path / "jobs" / "ingest.py").touch()
        with pytest.raises(ClusterError, match=r"no Ray is up.*penstock up"):
            jobs.run_job(Settings(project_root=tmp_path), "ingest", [])
