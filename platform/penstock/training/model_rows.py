"""The rows that a run of a model works on: built once, and the same ones after a restart."""

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path

import polars as pl
import psutil

from penstock.errors import DeclarationError, TrainingDataError
from penstock.features.training_set import (
    TrainingSet,
    build_training_set,
    load_training_set,
    read_training_set,
)
from penstock.features.training_set_pieces import column_names
from penstock.progress import Progress
from penstock.settings import Settings
from penstock.training.declarations import Model
from penstock.training.row_sources import PieceRows, plan_rows
from penstock.training.tracking import TrackedRun

_LYING_TAG = "penstock.training_rows_lie_in"
_TRAINING_SET_TAG = "penstock.training_set"


def tracked_training_set(
    settings: Settings,
    model: Model,
    tracked: TrackedRun,
    *,
    start: datetime,
    end: datetime,
    progress: Progress,
    table_versions: Mapping[str, int] | None = None,
) -> TrainingSet:
    """Give the training set that an earlier attempt at the run built, or build it.

    Args:
        settings: where the tables are.
        model: its service, label and the columns it looks at beside features.
        tracked: the run; it is told which training set and which tables it stands on.
        start: the first moment of the rows.
        end: where they end, itself left out.
        progress: hears of each step.
        table_versions: the tables as they were; None: as they are.

    Raises:
        NotFoundError: a table or the service does not exist.
        DeclarationError: the service holds the label, or lacks the baseline.
    """
    known = tracked.tag(_TRAINING_SET_TAG) if tracked.is_resumed else None
    if known:
        return load_training_set(settings, known)
    made = build_training_set(
        settings,
        use_case=model.use_case,
        service=model.feature_service,
        label_table=model.label_table,
        label=model.label,
        start=start,
        end=end,
        table_versions=table_versions,
        extra_columns=model.group_columns,
        progress=progress,
    )
    if model.label in made.feature_names:
        raise DeclarationError(
            f"the feature service {model.feature_service} holds the label {model.label!r}",
            allowed="features that are known before the label is",
        )
    if model.baseline not in (None, *made.feature_names):
        raise DeclarationError(
            f"the baseline {model.baseline!r} is no feature of the service {model.feature_service}",
            allowed=", ".join(made.feature_names),
        )
    tables = {f"penstock.table.{table}": str(v) for table, v in made.table_versions.items()}
    tracked.set_tags({_TRAINING_SET_TAG: made.id, **tables})
    return made


def source_rows(
    settings: Settings,
    made: TrainingSet,
    model: Model,
    tracked: TrackedRun,
    *,
    folder: Path,
    start: datetime,
    end: datetime,
    progress: Progress,
) -> PieceRows:
    """Read what splits look at; the features go to memory, or to files where it has no room.

    Args:
        settings: how much memory rows may take.
        made: what to read.
        model: its groups and its service.
        tracked: the run; it is told where the rows lie.
        folder: for files, of this run alone; every worker sees it.
        start: the first moment of the rows.
        end: where they end, itself left out.
        progress: hears how far files are.

    Raises:
        TrainingDataError: there are none.
        IntegrityError: a file of the set is gone or damaged.
    """
    _refuse_none(made.num_rows, model, start=start, end=end)
    lying = plan_rows(
        made.num_rows,
        num_columns=len(column_names(made)),
        num_features=len(made.feature_names),
        free_bytes=psutil.virtual_memory().available,
        allowed_bytes=settings.training.rows_memory_bytes,
    )
    tracked.set_tags({_LYING_TAG: f"{'memory' if lying.in_memory else 'files'}: {lying.reason}"})
    files = None if lying.in_memory else folder
    return PieceRows.open(made, files, groups=model.group_columns, progress=progress)


def rows_of(made: TrainingSet, model: Model, *, start: datetime, end: datetime) -> pl.DataFrame:
    """Read the rows into memory.

    Raises:
        TrainingDataError: there are none.
    """
    _refuse_none(made.num_rows, model, start=start, end=end)
    return read_training_set(made)


def _refuse_none(num_rows: int, model: Model, *, start: datetime, end: datetime) -> None:
    if num_rows == 0:
        raise TrainingDataError(
            f"the training set of {model.name} has no rows",
            allowed=f"{model.label_table} has events from {start} to {end}",
            next_step="ingest them, or mend the dates in model.py: `penstock data show "
            f"{model.label_table}`",
        )
