"""Where a rollout stands, in files: the process that carries it out writes, replicas follow.

    <storage>/serving/rollouts/<model>.json           the rollout: see `Rollout`
    <storage>/serving/rollouts/<model>.back           somebody asks for the way back, with a reason
    <storage>/serving/rollouts/<model>/<id>/….json    what each replica counted, twice a second

Files on the disk that all nodes share reach replicas within a second, need nobody to be up, and
stay when everything is killed.
"""

import contextlib
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from penstock.files import write_whole
from penstock.records import Record
from penstock.serving.ab_policy import Evidence
from penstock.serving.arm_counts import ArmCounts
from penstock.serving.deployments import Deployment
from penstock.serving.rollout import RolloutPlan
from penstock.settings import Settings

LEASE_S = 10.0
"""A rollout that nobody has watched for so long gives the new version nothing: a guard that nobody
looks at is none."""
LOOK_S = 0.5


class Stretch(Record):
    """A time in which the new version had its share."""

    since: datetime
    until: datetime


class Rollout(Record):
    """A rollout and how far it is."""

    id: str
    plan: RolloutPlan
    old: Deployment
    new: Deployment
    phase: Literal["starting", "shifting", "finishing", "over"]
    stage: int = 0
    share_percent: float = 0.0
    """What the new version answers now."""
    stage_started_at: datetime
    watched_at: datetime
    outcome: Literal["served", "shadowed", "back"] | None = None
    reason: str | None = None
    evidence: Evidence | None = None
    """Of an A/B: what its last look found."""
    stretches: tuple[Stretch, ...] = ()
    """Of an A/B whose process was killed: the times before the present one that it was watched."""

    @property
    def is_over(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase == "over"

    def share_at(self, moment: datetime) -> float:
        """Give the percent that the new version may answer: none where nobody watches it."""
        is_on = self.phase in ("shifting", "finishing")
        is_watched = (moment - self.watched_at).total_seconds() < LEASE_S
        return self.share_percent if is_on and is_watched else 0.0


class Report(Record):
    """What a replica counted of both versions since it started."""

    replica: str
    new: ArmCounts
    old: ArmCounts


def folder(settings: Settings) -> Path:
    """Where all of them are."""
    return settings.storage_path / "serving" / "rollouts"


def write(settings: Settings, rollout: Rollout) -> None:
    """Make it the model's rollout; the caller holds the model's lock."""
    content = rollout.model_dump_json(indent=2).encode()
    write_whole(folder(settings) / f"{rollout.plan.model}.json", content)


def find(settings: Settings, model: str) -> Rollout | None:
    """Read the model's last rollout; None where there is none."""
    try:
        return Rollout.model_validate_json((folder(settings) / f"{model}.json").read_bytes())
    except (FileNotFoundError, ValidationError):
        return None


def ask_back(settings: Settings, model: str, reason: str) -> None:
    """Ask whoever carries the rollout out to go back."""
    write_whole(folder(settings) / f"{model}.back", reason.encode())


def asked_back(settings: Settings, model: str) -> str | None:
    """Give somebody's reason for the way back; None: nobody asks."""
    try:
        return (folder(settings) / f"{model}.back").read_text()
    except FileNotFoundError:
        return None


def begin(settings: Settings, rollout: Rollout) -> None:
    """Make room for what replicas report, and forget who asked an earlier one back."""
    clear(settings, rollout)
    reports_folder(settings, rollout.plan.model, rollout.id).mkdir(parents=True)


def clear(settings: Settings, rollout: Rollout) -> None:
    """Remove what only a rollout under way needs."""
    (folder(settings) / f"{rollout.plan.model}.back").unlink(missing_ok=True)
    shutil.rmtree(reports_folder(settings, rollout.plan.model, rollout.id), ignore_errors=True)


def reports_folder(settings: Settings, model: str, rollout_id: str) -> Path:
    """Where replicas report."""
    return folder(settings) / model / rollout_id


def report(settings: Settings, model: str, rollout_id: str, told: Report) -> None:
    """Say what a replica counted; readers see the last word or this one."""
    file = reports_folder(settings, model, rollout_id) / f"{told.replica}.json"
    # Not synced: half a second later there is a newer one.
    new = file.with_suffix(".new")
    # Without its folder the rollout was over a moment ago.
    with contextlib.suppress(FileNotFoundError):
        new.write_text(told.model_dump_json())
        new.rename(file)


def reports(settings: Settings, rollout: Rollout) -> list[Report]:
    """Read what every replica said last, those that died since too."""
    found = []
    for file in sorted(reports_folder(settings, rollout.plan.model, rollout.id).glob("*.json")):
        try:
            found.append(Report.model_validate_json(file.read_bytes()))
        except (FileNotFoundError, ValidationError):
            continue
    return found


def now() -> datetime:
    """This moment."""
    return datetime.now(UTC)
