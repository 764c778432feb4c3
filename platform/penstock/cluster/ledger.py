"""What each job took, kept in the storage: one small file a job, by the month in which it began.

A job writes its own file while it runs, whole each time, so a kill leaves what it had taken until
then. Nobody else writes it before Ray says that the job has ended.
"""

import hashlib
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from penstock.cluster.usage import Usage
from penstock.errors import IntegrityError
from penstock.files import write_whole
from penstock.prices import CostSettings
from penstock.records import Record
from penstock.settings import Settings

State = Literal["running", "succeeded", "failed", "stopped", "lost"]
_STATES: Mapping[str, State] = {"SUCCEEDED": "succeeded", "FAILED": "failed", "STOPPED": "stopped"}
_PLAIN_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


class JobCost(Record):
    """One job, and what it took."""

    job_id: str
    kind: str
    """The script: train, ingest, …"""
    use_case: str | None
    """None: it is of no use case."""
    subject: str | None = None
    """What of the use case: for a training its estimators."""
    num_rows: int | None = None
    """What its time grows with; None: nobody said."""
    model_versions: tuple[str, ...] = ()
    """`<model> <version>` of each that it made."""
    state: State
    """lost: killed, or Ray went down, with nobody there to say how it ended."""
    started: datetime
    seen: datetime
    """Until when it is counted: its end, or its last word."""
    usage: Usage

    @property
    def wall_s(self) -> float:
        """How long it ran."""
        return (self.seen - self.started).total_seconds()

    def money(self, prices: CostSettings) -> float:
        """What it costs at these prices."""
        usage = self.usage
        return prices.money(cpu_s=usage.cpu_s, gpu_s=usage.gpu_s, memory_gb_s=usage.memory_gb_s)


def write(settings: Settings, cost: JobCost) -> None:
    """Keep the record; one of the same job is replaced."""
    write_whole(_file(settings, cost), cost.model_dump_json().encode())


def read_month(settings: Settings, month: datetime) -> list[JobCost]:
    """Give every job that began in the month (UTC), the oldest first.

    Raises:
        IntegrityError: a record cannot be read.
    """
    return _read(_root(settings) / f"{month:%Y-%m}")


def read_all(settings: Settings) -> list[JobCost]:
    """Give every job there ever was, the oldest first.

    Raises:
        IntegrityError: a record cannot be read.
    """
    folders = sorted(path for path in _root(settings).glob("*-*") if path.is_dir())
    return [cost for folder in folders for cost in _read(folder)]


def spent(settings: Settings, use_case: str, *, now: datetime | None = None) -> float:
    """Say what the jobs of a use case have cost this month."""
    costs = read_month(settings, now or datetime.now(UTC))
    return sum(cost.money(settings.cost) for cost in costs if cost.use_case == use_case)


def settle(costs: list[JobCost], statuses: Mapping[str, str] | None) -> list[JobCost]:
    """Give anew the records of jobs that ended without a word.

    Args:
        costs: as they are kept.
        statuses: what Ray says of each job that it knows, by id; None: no Ray is up, so that
            none can be running on it.
    """
    settled = []
    for cost in costs:
        if cost.state != "running":
            continue
        status = None if statuses is None else statuses.get(cost.job_id)
        # A driver that nobody submitted is in no list of jobs: it tells its own end.
        if status is None and statuses is not None and cost.job_id.startswith(BY_HAND):
            continue
        if status is not None and status not in _STATES:
            continue
        state = _STATES.get(status or "", "lost")
        settled.append(cost.model_copy(update={"state": state}))
    return settled


BY_HAND = "driver-"
"""Begins the id of a job that was not submitted to Ray as one."""


def _read(folder: Path) -> list[JobCost]:
    found = []
    for file in folder.glob("*.json"):
        try:
            found.append(JobCost.model_validate_json(file.read_bytes()))
        except (ValidationError, UnicodeDecodeError) as error:
            raise IntegrityError(
                f"the record of a job's cost in {file} cannot be read",
                next_step=f"move {file} away: its job is then not counted",
            ) from error
    return sorted(found, key=lambda cost: (cost.started, cost.job_id))


def _file(settings: Settings, cost: JobCost) -> Path:
    name = cost.job_id
    if not _PLAIN_NAME.fullmatch(name):
        # Whoever submits by hand may name a job as they like.
        name = hashlib.sha256(name.encode()).hexdigest()
    return _root(settings) / f"{cost.started:%Y-%m}" / f"{name}.json"


def _root(settings: Settings) -> Path:
    return settings.storage_path / "costs"
