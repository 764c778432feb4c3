"""The inside of a Ray job: settings, Ray, progress, result and errors for every jobs/*.py."""

import importlib
import os
import signal
import sys
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

from penstock import logs
from penstock.cluster import markers
from penstock.cluster.account import Account, left
from penstock.cluster.connection import connect
from penstock.errors import PenstockError, storage_full
from penstock.logs import redact
from penstock.progress import Progress
from penstock.records import Record
from penstock.settings import (
    REQUEST_ID_VARIABLE,
    Settings,
    inherited_environment,
    load_settings,
)

__all__ = ["RunningJob", "connect", "job"]

_EXIT_AFTER_SIGTERM = 128 + signal.SIGTERM


class RunningJob:
    """What a job's code works with."""

    def __init__(
        self,
        name: str,
        settings: Settings,
        request_id: str,
        report: "Reporter",
        account: Account,
    ) -> None:
        self.name = name
        self.settings = settings
        self.request_id = request_id
        """The same for every attempt at one request: what makes a job's steps idempotent."""
        self.progress: Progress = report.progress
        self.table: Callable[[markers.TableMarker], None] = report.table
        self.account = account
        """What the job takes; say there what it is about."""
        self._report = report

    def finish(self, result: Record | Mapping[str, Any]) -> None:
        """Hand the job's result to the command that submitted it."""
        plain = result.model_dump(mode="json") if isinstance(result, Record) else dict(result)
        self._report.send(markers.ResultMarker(result=plain))


class Reporter:
    """Writes a job's messages to its log: as marker lines for a command, as text for a person."""

    def __init__(self, *, for_machine: bool, write: Callable[[str], None] | None = None) -> None:
        self._for_machine = for_machine
        self._write = write or _write_line
        self._started_s = time.monotonic()
        self._last_step = ""
        self._last_sent_s = float("-inf")
        self._last_table_s = float("-inf")

    def progress(
        self, step: str, done: int, total: int | None = None, *, unit: str = "rows"
    ) -> None:
        """Tell of progress, unless the last word on this step was a moment ago."""
        now = time.monotonic()
        is_news = step != self._last_step or (total is not None and done >= total)
        if not is_news and now - self._last_sent_s < self._interval_s(now):
            return
        self._last_step, self._last_sent_s = step, now
        self.send(markers.ProgressMarker(step=step, done=done, total=total, unit=unit))

    def table(self, marker: markers.TableMarker) -> None:
        """Tell what was found so far, unless the last such word was a moment ago."""
        now = time.monotonic()
        if now - self._last_table_s >= self._interval_s(now):
            self._last_table_s = now
            self.send(marker)

    def send(self, marker: markers.Marker) -> None:
        """Write one message."""
        self._write(markers.write(marker) if self._for_machine else as_text(marker))

    def _interval_s(self, now: float) -> float:
        # The reader fetches the whole log each time: a job of hours must not fill it with progress.
        if not self._for_machine:
            return 2.0
        return min(0.2 + 0.01 * (now - self._started_s), 5.0)


def as_text(marker: markers.Marker) -> str:
    """Say a message in words, for a job submitted by hand."""
    if isinstance(marker, markers.ProgressMarker):
        of = "" if marker.total is None else f" of {marker.total:,}"
        return f"{marker.step}: {marker.done:,}{of} {marker.unit}"
    if isinstance(marker, markers.TableMarker):
        rows = (marker.columns, *marker.rows)
        return "\n".join((f"{marker.title}:", *("  " + "  ".join(row) for row in rows)))
    if isinstance(marker, markers.ResultMarker):
        lines = (f"  {key}: {value}" for key, value in marker.result.items())
        return "\n".join(("result:", *lines))
    parts = (marker.found, marker.allowed, marker.next_step)
    return f"error: {'. '.join(part for part in parts if part)}"


def _write_line(text: str) -> None:
    # One write of the whole line: the lines of workers come into the same log.
    sys.stdout.flush()
    os.write(1, (text + "\n").encode())


@contextmanager
def job(
    name: str, *, use_case: str | None = None, worker_imports: Sequence[str] = ()
) -> Iterator[RunningJob]:
    """Run the body as the driver of a Ray job.

    Loads the settings, connects to Ray, and ends the process with the exit code of any error: of a
    PenstockError with its own, of every other one with 1 and its traceback. Asked to stop
    (SIGTERM), it leaves by SystemExit, so that what the body holds is given back. What it takes of
    Ray is written down; where the budget of its use case is spent, it does not begin or is ended.

    Args:
        name: for its messages, and the kind under which its cost is summed.
        use_case: whose budget it is on.
        worker_imports: modules that the body's first task needs; a worker starts and imports them
            now, beside what the body does until then.
    """
    request_id = inherited_environment().get(REQUEST_ID_VARIABLE)
    report = Reporter(for_machine=request_id is not None)
    signal.signal(signal.SIGTERM, _leave)
    logs.configure()
    try:
        settings = load_settings()
        left(settings, use_case)
        connect(settings)
        # Ray's own handler ends the process without unwinding what the body holds.
        signal.signal(signal.SIGTERM, _leave)
        if worker_imports:
            _start_worker(worker_imports)
        request = request_id or uuid.uuid4().hex
        with _on_account(settings, name, use_case) as account:
            yield RunningJob(name, settings, request, report, account)
        # On its way out Ray would wait half a second for the last lines of failed workers.
        _disconnect()
    except Exception as error:  # noqa: BLE001  # the outermost frame of a job: all ends here
        cause = _ours(error)
        if cause is not None:
            report.send(markers.from_error(cause))
            raise SystemExit(cause.exit_code) from None
        sys.stderr.write(redact(traceback.format_exc()))
        text = f"job {name} failed: {type(error).__name__}: {error}"
        report.send(markers.from_error(PenstockError(redact(text))))
        raise SystemExit(1) from None


@contextmanager
def _on_account(settings: Settings, kind: str, use_case: str | None) -> Iterator[Account]:
    account = Account(settings, kind, use_case)
    account.open()
    try:
        yield account
    except Exception:
        account.close("failed")
        raise
    except BaseException:
        account.close("stopped")
        raise
    account.close("succeeded")


def _start_worker(modules: Sequence[str]) -> None:
    import ray

    def load() -> None:
        for module in modules:
            importlib.import_module(module)

    ray.remote(num_cpus=0)(load).remote()


def _disconnect() -> None:
    import ray

    ray.shutdown()


def _ours(error: BaseException) -> PenstockError | None:
    """Find the error on purpose, also where a Ray task raised it: Ray wraps it on its way here.

    The wrapper of a task's error is itself of the error's class, so the cause is looked at first.
    """
    inner = getattr(error, "cause", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        found = _ours(inner)
        if found is not None:
            return found
    return error if isinstance(error, PenstockError) else storage_full(error)


def _leave(_signal: int, _frame: FrameType | None) -> None:
    raise SystemExit(_EXIT_AFTER_SIGTERM)
