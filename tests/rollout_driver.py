"""Carries a rollout out in a process of its own, which kills itself where it is told to."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from penstock.registry.versions import resolve
from penstock.serving import deployments, rollout_files
from penstock.serving.rolling import roll_out
from penstock.serving.rollout import RolloutPlan
from penstock.settings import Settings


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_behind(where: str) -> None:
    """Die right behind the write that says so, or before the deployment is written down."""
    write = rollout_files.write

    def write_and_die(settings: Settings, rollout: rollout_files.Rollout) -> None:
        write(settings, rollout)
        if where == f"{rollout.phase} {rollout.stage}":
            die()

    rollout_files.write = write_and_die
    if where == "unrecorded":
        deployments.record = lambda *_: die()


def main() -> None:
    settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
    plan = RolloutPlan.model_validate_json(sys.argv[2])
    die_behind(sys.argv[3])
    told: Any = lambda _: None  # noqa: E731
    roll_out(settings, resolve(settings, plan.model, plan.to_version), plan, report=told)


if __name__ == "__main__":
    main()
