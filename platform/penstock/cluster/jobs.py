"""Heavy commands run as Ray jobs: submitted once, followed live, stopped on Ctrl-C."""

import contextlib
import hashlib
import re
import shlex
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from rich.console import Console

from penstock.cluster import markers
from penstock.cluster.connection import submission_client
from penstock.cluster.display import Display
from penstock.cluster.runtime_env import runtime_env
from penstock.errors import ClusterError, JobFailedError, PenstockError, unknown_name
from penstock.settings import ATTEMPT_VARIABLE, REQUEST_ID_VARIABLE, Settings

EXIT_INTERRUPTED = 130
_FIRST_POLL_S = 0.1
_LAST_POLL_S = 0.25
_LARGE_LOG_POLL_S = 3.0
_LARGE_LOG_BYTES = 1 << 20
_STOP_TIMEOUT_S = 10.0
# A submission that was on its way when Ctrl-C came may arrive this much later.
_ARRIVAL_S = 2.0
# How long Ray may be silent about a job that we follow: a restart of its dashboard takes less.
_SILENCE_S = 20.0
_RETRY_S = 1.0
# What Ray's client raises when a question fails: requests' errors are OSErrors.
_NO_ANSWER = (OSError, RuntimeError)
# What Ray writes into each job's log by itself.
_RAYS_OWN_LINES = re.compile(r"job_manager\.py:\d+ -- |^Running entrypoint for job ")
# Ray's client does not send code that is still there from an earlier job, and Ray removes it when
# that job ends: between the two the new job cannot start. It has done nothing then.
_CODE_WAS_GONE = "Failed to download runtime_env file package"
_MOST_LOST = 3
_ENDED_BADLY = frozenset({"FAILED", "STOPPED"})
_FINAL = _ENDED_BADLY | {"SUCCEEDED"}
T = TypeVar("T")


def run_job(
    settings: Settings,
    script: str,
    arguments: Sequence[str],
    *,
    request_id: str | None = None,
    is_heavy: bool = True,
) -> dict[str, Any]:
    """Run `jobs/<script>.py` on the cluster, show its progress and logs, give its result.

    A second call with the same request id does not start a second job: it follows the first one,
    or gives its result. Where that one failed or was stopped, the request goes on in a new job.

    Args:
        settings: which Ray, which project.
        script: the file's name in jobs/, without `.py`.
        arguments: its command line.
        request_id: names the request; by default each call is a request of its own.
        is_heavy: on another Ray it asks for a CPU, so that it runs where work may run: a job
            that asks for nothing runs on the head, even one that the cluster gives no CPU.

    Raises:
        NotFoundError: there is no such script.
        ClusterError: no Ray answers.
        JobFailedError: the job failed; carries its exit code. Where the job reported an error on
            purpose, that error is raised instead, with its own kind, words and exit code.
    """
    folder = settings.project_root / "jobs"
    if not (folder / f"{script}.py").is_file():
        raise unknown_name("job", script, (path.stem for path in folder.glob("*.py")))
    return _run(
        settings,
        script,
        [f"jobs/{script}.py", *arguments],
        request_id or uuid.uuid4().hex,
        num_cpus=1 if is_heavy and settings.ray.address is not None else 0,
    )


def run_module(settings: Settings, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a module of the package on the cluster's head, as `run_job` runs a script."""
    return _run(settings, module, ["-m", module, *arguments], uuid.uuid4().hex, num_cpus=0)


def _run(
    settings: Settings,
    name: str,
    command: Sequence[str],
    request_id: str,
    *,
    num_cpus: float,
) -> dict[str, Any]:
    client = submission_client(settings)
    console = Console(stderr=True)
    # A job's driver runs in a login shell that may find another python first.
    interpreter = sys.executable if settings.ray.address is None else "python"
    job: dict[str, Any] = {
        "entrypoint": shlex.join([interpreter, *command]),
        "runtime_env": runtime_env(settings, {REQUEST_ID_VARIABLE: request_id}),
        "entrypoint_num_cpus": num_cpus,
    }
    attempt = 1
    submission_id = submission_id_of(name, request_id)
    num_lost = 0
    try:
        while True:
            while not _submit(client, submission_id, job):
                attempt += 1
                submission_id = submission_id_of(name, request_id, attempt)
            follower = Follower(client, submission_id, console, title=f"{name}: starting")
            try:
                return follower.follow()
            except JobFailedError as error:
                num_lost += 1
                if _CODE_WAS_GONE not in error.found or num_lost == _MOST_LOST:
                    raise
            # Another environment, as nodes see it: for 10 s they keep that the last one failed.
            variables = {REQUEST_ID_VARIABLE: request_id, ATTEMPT_VARIABLE: str(num_lost + 1)}
            job["runtime_env"] = runtime_env(settings, variables)
    except KeyboardInterrupt:
        console.print(f"asking job {submission_id} to stop …", highlight=False, soft_wrap=True)
        _stop(client, submission_id)
        raise JobFailedError(
            f"stopped on your request: job {submission_id}", exit_code=EXIT_INTERRUPTED
        ) from None


def submission_id_of(name: str, request_id: str, attempt: int = 1) -> str:
    """Name the job of a request: the same request, the same job; each attempt one of its own."""
    digest = hashlib.sha256(f"{name}\0{request_id}".encode()).hexdigest()[:16]
    number = "" if attempt == 1 else f"-{attempt}"
    return f"{name.rpartition('.')[2]}-{digest}{number}"


def _submit(client: Any, submission_id: str, job: dict[str, Any]) -> bool:
    """Submit the job unless there is one of that id; False: that one ended badly."""
    try:
        try:
            client.submit_job(submission_id=submission_id, **job)
            return True
        except RuntimeError as error:
            # Ray refuses a second job of the same id, which is what keeps one request one job.
            if "already exists" not in str(error):
                raise
        # Its id cannot be used again: Ray would write both logs into one.
        return str(client.get_job_status(submission_id).value) not in _ENDED_BADLY
    except _NO_ANSWER as error:
        raise ClusterError(f"Ray did not take the job: {error}") from error


def _stop(client: Any, submission_id: str) -> None:
    """Ask the job to stop and wait until it has."""
    begun = time.monotonic()
    is_asked = False
    while time.monotonic() - begun < (_STOP_TIMEOUT_S if is_asked else _ARRIVAL_S):
        # Without an answer there is no such job yet, or Ray is gone.
        with contextlib.suppress(*_NO_ANSWER):
            if not is_asked:
                client.stop_job(submission_id)
                is_asked = True
            if str(client.get_job_status(submission_id).value) in _FINAL:
                return
        time.sleep(_FIRST_POLL_S)


@dataclass
class Follower:
    """Follows one job to its end."""

    client: Any
    submission_id: str
    console: Console
    title: str
    _seen: int = 0
    _result: dict[str, Any] = field(default_factory=dict)
    _error: markers.ErrorMarker | None = None

    def follow(self) -> dict[str, Any]:
        """Show the job until it ends, and give its result.

        Raises:
            PenstockError: the one that the job reported.
            JobFailedError: it failed without a word, or was stopped.
            ClusterError: Ray does not answer any more.
        """
        with Display(self.console, self.title) as display:
            status = self._wait(display)
        if status == "SUCCEEDED":
            return self._result
        error = self._failure(status)
        # Some of the work may have landed before the rest failed; the command can tell of it.
        error.result = self._result
        raise error

    def _wait(self, display: Display) -> str:
        poll_s = _FIRST_POLL_S
        while True:
            # Status first: what the job wrote before it ended is then surely in the log.
            status = str(self._ask(self.client.get_job_status).value)
            size = self._read_log(display, is_final=status in _FINAL)
            if status in _FINAL:
                return status
            time.sleep(_LARGE_LOG_POLL_S if size > _LARGE_LOG_BYTES else poll_s)
            poll_s = min(poll_s * 1.05, _LAST_POLL_S)

    def _read_log(self, display: Display, *, is_final: bool) -> int:
        log: str = self._ask(self.client.get_job_logs)
        end = len(log) if is_final else log.rfind("\n") + 1
        for line in log[self._seen : end].splitlines():
            self._take(line, display)
        self._seen = max(self._seen, end)
        return len(log)

    def _take(self, line: str, display: Display) -> None:
        marker = markers.read(line)
        if marker is None:
            if line.strip() and not _RAYS_OWN_LINES.search(line):
                display.line(line)
        elif isinstance(marker, markers.ProgressMarker):
            display.show(marker)
        elif isinstance(marker, markers.TableMarker):
            display.show_table(marker)
        elif isinstance(marker, markers.ResultMarker):
            self._result = marker.result
        else:
            self._error = marker

    def _ask(self, question: Callable[[str], T]) -> T:
        """Ask Ray about the job, again and again for a while if it does not answer."""
        deadline = time.monotonic() + _SILENCE_S
        while True:
            try:
                return question(self.submission_id)
            except _NO_ANSWER as error:
                if time.monotonic() > deadline:
                    raise ClusterError(
                        f"Ray tells no more of job {self.submission_id}: {error}",
                        next_step="see `penstock status`: the job itself may go on",
                    ) from error
            time.sleep(_RETRY_S)

    def _failure(self, status: str) -> PenstockError:
        if self._error is not None:
            return markers.to_error(self._error)
        info = self._ask(self.client.get_job_info)
        if status == "STOPPED":
            return JobFailedError(
                f"job {self.submission_id} was stopped", exit_code=EXIT_INTERRUPTED
            )
        return JobFailedError(
            f"job {self.submission_id} failed: {last_line(info.message)}",
            exit_code=exit_code_of(info.driver_exit_code),
            next_step=f"read its log: `ray job logs {self.submission_id}`",
        )


def exit_code_of(driver_exit_code: int | None) -> int:
    """Turn what Ray reports into what a shell would: 128 + n for the signal n, 1 for unknown."""
    if driver_exit_code is None or driver_exit_code == 0:
        return 1
    return 128 - driver_exit_code if driver_exit_code < 0 else driver_exit_code


def last_line(message: str | None) -> str:
    """Give the line of a Ray message that says the most: the last one."""
    lines = [line.strip() for line in (message or "").splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"
