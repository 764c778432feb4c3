"""What a finished training leaves on record: enough to judge it, and to make it again."""

import difflib
import hashlib
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import numpy as np
from pydantic import Field

from penstock.errors import NotFoundError
from penstock.records import Record
from penstock.settings import Settings
from penstock.training.declarations import Estimator
from penstock.training.environment import Hardware
from penstock.training.estimators.base import Scores
from penstock.training.folds import Counts

RUN_FILE = "run.json"
PATCH_FILE = "code.patch"
SCORES_FILE = "test_scores.npy"


class Provenance(Record):
    """What a run stands on beside its configuration."""

    training_set_digest: str
    """SHA-256 over the rows that were trained and tested on."""
    feature_service_digest: str
    """Changes when the service, its views, functions or windows do."""
    code_digest: str
    """SHA-256 over the package and the use case's declarations."""
    patch_digest: str | None
    """SHA-256 of `code.patch`, which makes the commit into what ran; None: there is none."""
    patch_left_out: Mapping[str, str]
    """Files that differed from the commit and stand not in the patch, each with the reason."""
    hardware: Hardware
    num_threads: int
    """Of the fit, all workers together."""
    predictions_digest: str
    """SHA-256 over the scores of the test rows, in their order."""


class WorkRecord(Record):
    """What every finished work on a training set tells of itself."""

    run_id: str
    request_id: str
    model: str
    use_case: str
    estimator: str
    training_set_id: str
    table_versions: dict[str, int]
    seed: int
    git_commit: str | None
    environment_digest: str
    started: datetime
    fit_s: float
    """All fits together, whether or not they ran side by side."""


class Run(WorkRecord, Counts):
    """One finished training; its training set is its left neighbour."""

    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = Field(default_factory=dict)
    """Of each metric, as the model's bootstrap finds them."""
    provenance: Provenance | None = None
    """None: the run is older than this record."""
    tuning_run: str | None = None
    """The search that found the estimator's parameters; None: they are as declared."""
    bundle_path: str


def run_folder(settings: Settings, run_id: str) -> Path:
    """Where a run's bundle lies."""
    return settings.storage_path / "runs" / run_id


def read_run(settings: Settings, run_id: str) -> Run | None:
    """Give the run's record; None where it has not finished."""
    file = run_folder(settings, run_id) / RUN_FILE
    return Run.model_validate_json(file.read_bytes()) if file.is_file() else None


def find_run(settings: Settings, run_id: str) -> Run:
    """Give the record of a run that has finished.

    Raises:
        NotFoundError: there is none of that id; the nearest is offered.
    """
    # What is no id must not lead out of the folder.
    found = read_run(settings, run_id) if run_id.isalnum() else None
    if found is None:
        root = settings.storage_path / "runs"
        finished = [file.parent.name for file in root.glob(f"*/{RUN_FILE}")]
        near = difflib.get_close_matches(run_id, finished, n=1, cutoff=0.5)
        raise NotFoundError(
            f"there is no finished run {run_id!r} in {root}",
            next_step=f"did you mean {near[0]}?"
            if near
            else "`penstock models show` tells the run of a version",
        )
    return found


def predictions_digest(scores: Scores) -> str:
    """Give the SHA-256 of the scores, the same for the same numbers on every machine."""
    return hashlib.sha256(np.ascontiguousarray(scores, dtype="<f8").tobytes()).hexdigest()


def num_threads(config: Estimator) -> int:
    """How many threads a fit takes, all workers together."""
    workers: int = getattr(config, "num_workers", 1)
    cpus: int = getattr(config, "num_cpus_per_worker", getattr(config, "num_cpus", 1))
    return workers * cpus
