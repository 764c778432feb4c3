"""Heavy commands run as Ray jobs: submitted once, followed live, stopped on Ctrl-C."""

import hashlib
import re
import shlex
import sys
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from penstock.cluster import markers
from penstock.cluster.connection import submission_client
from penstock.cluster.display import Display
from penstock.cluster.runtime_env import runtime_env
from penstock.errors import ClusterError, JobFailedError, PenstockError, unknown_name
from penstock.settings import REQUEST_ID_VARIABLE, Settings

EXIT_INTERRUPTED = 130
_FIRST_POLL_S = 0.1
_LAST_POLL_S = 0.25
_LARGE_LOG_POLL_S = 3.0
_LARGE_LOG_BYTES = 1 << 20
_STOP_TIMEOUT_S = 10.0
# What Ray writes into each job's log by itself.
_RAYS_OWN_LINES = re.compile(r"job_manager\.py:\d+ -- |^Running entrypoint for job ")
_FINAL = frozenset({"SUCCEEDED", "FAILED", "STOPPED"})


def run_job(
    settings: Settings,
    script: str,
    arguments: Sequence[str],
    *,
    request_id: str | None = None,
    env: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Run `jobs/<script>.py` on the cluster, show its progress and logs, give its result.

    A second call with the same request id does not start a second job: it follows the first one,
    or gives its result.

    Args:
        settings: which Ray, which project.
        script: the file's name in jobs/, without `.py`.
        arguments: its command line.
        request_id: names the request; by default each call is a request of its own.
        env: more environment variables for the job.

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
        settings, script, [f"jobs/{script}.py", *arguments], request_id or uuid.uuid4().hex, env
    )


def run_module(settings: Settings, module: str, arguments: Sequence[str]) -> dict[str, Any]:
    """Run a module of the package on the cluster, as `run_job` runs a script."""
    return _run(settings, module, ["-m", module, *arguments], uuid.uuid4().hex, None)


def _run(
    settings: Settings,
    name: str,
    command: Sequence[str],
    request_id: str,
    env: Mapping[str, str] | None,
) -> dict[str, Any]:
    client = submission_client(settings)
    submission_id = submission_id_of(name, request_id)
    # A job's driver runs in a login shell that may find another python first.
    interpreter = sys.executable if settings.ray.address is None else "python"
    _submit_once(
        client,
        submission_id,
        entrypoint=shlex.join([interpreter, *command]),
        runtime_env=runtime_env(settings, {REQUEST_ID_VARIABLE: request_id, **(env or {})}),
    )
    follower = Follower(client, submission_id, Console(stderr=True), title=f"{name}: starting")
    return follower.follow()


def submission_id_of(name: str, request_id: str) -> str:
    """Name the job of a request: the same request, the same job."""
    digest = hashlib.sha256(f"{name}\0{request_id}".encode()).hexdigest()[:16]
    return f"{name.rpartition('.')[2]}-{digest}"


def _submit_once(
    client: Any, submission_id: str, *, entrypoint: str, runtime_env: dict[str, Any]
) -> None:
    try:
        client.submit_job(
            entrypoint=entrypoint, submission_id=submission_id, runtime_env=runtime_env
        )
    except RuntimeError as error:
        # Ray refuses a second job of the same id, which is what keeps one request one job.
        if "already exists" in str(error) or "already been used" in str(error):
            return
        raise ClusterError(f"Ray did not take the job: {error}") from error


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
        """
        with Display(self.console, self.title) as display:
            try:
                status = self._wait(display)
            except KeyboardInterrupt:
                self._stop(display)
                raise JobFailedError(
                    f"stopped on your request: job {self.submission_id}",
                    exit_code=EXIT_INTERRUPTED,
                ) from None
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
            status = str(self.client.get_job_status(self.submission_id).value)
            size = self._read_log(display, is_final=status in _FINAL)
            if status in _FINAL:
                return status
            time.sleep(_LARGE_LOG_POLL_S if size > _LARGE_LOG_BYTES else poll_s)
            poll_s = min(poll_s * 1.05, _LAST_POLL_S)

    def _read_log(self, display: Display, *, is_final: bool) -> int:
        log: str = self.client.get_job_logs(self.submission_id)
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
        elif isinstance(marker, markers.ResultMarker):
            self._result = marker.result
        else:
            self._error = marker

    def _stop(self, display: Display) -> None:
        display.line(f"asking job {self.submission_id} to stop …")
        self.client.stop_job(self.submission_id)
        deadline = time.monotonic() + _STOP_TIMEOUT_S
        while time.monotonic() < deadline:
            if str(self.client.get_job_status(self.submission_id).value) in _FINAL:
                return
            time.sleep(_FIRST_POLL_S)

    def _failure(self, status: str) -> PenstockError:
        if self._error is not None:
            return markers.to_error(self._error)
        info = self.client.get_job_info(self.submission_id)
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
