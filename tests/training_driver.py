"""Trains the mortal net as a driver of its own: python training_driver.py STORAGE DIARY DIES_AT.

One tracked run, its history and the final weights are what it leaves in the storage. It connects to
the Ray that the settings point at.
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

import mortal
from penstock.cluster import connection
from penstock.settings import Settings, load_settings
from penstock.training.estimators import torch_nets
from penstock.training.estimators.base import FitJob
from penstock.training.tracking import TrackedRun, Tracking

WEIGHTS_FILE = "weights.safetensors"
EXPERIMENT, REQUEST = "mortality", "one"
IN_THE_LOG = "in_the_log"
"""In place of a step to die at: when half of the history is logged."""


def tracked(settings: Settings) -> Any:
    return Tracking.open(settings).run(
        experiment=EXPERIMENT, name="net", request_id=REQUEST, tags={}
    )


def die_in_the_log() -> None:
    log = TrackedRun._log

    def once(self: TrackedRun, **parts: Any) -> None:
        metrics = parts.get("metrics", [])
        log(self, metrics=metrics[: len(metrics) // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    TrackedRun._log = once  # type: ignore[method-assign]  # the moment to die at


def main() -> None:
    storage, diary, dies_at = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
    settings = load_settings()
    kept = settings.model_copy(
        update={"storage": settings.storage.model_copy(update={"root": str(storage)})}
    )
    connection.connect(settings)
    torch_nets.export = lambda *_, **__: b""  # type: ignore[assignment]  # seconds, for nothing here
    inputs, labels = mortal.rows()
    with tracked(kept) as run:
        fitted = torch_nets.fit(
            mortal.declare(diary, pause_s=0.1),
            inputs.numpy(),
            labels.numpy(),
            FitJob(
                name="fit",
                checkpoints=storage / "checkpoints",
                import_folders=(str(Path(__file__).parent),),
            ),
        )
        if dies_at == IN_THE_LOG:
            die_in_the_log()
        run.log_history(fitted.history)
        weights = fitted.native.net.state_dict()
        save_file({name: value.clone() for name, value in weights.items()}, storage / WEIGHTS_FILE)


if __name__ == "__main__":
    main()
