"""What a measurement on folds leaves on record: the whole of it, and each fold as it is there."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from penstock.files import write_whole
from penstock.records import Record
from penstock.training.cross_validation import FoldResult
from penstock.training.folds import Counts
from penstock.training.runs import WorkRecord

_RESAMPLED = "resampled "


class FoldRecord(Record):
    """One fold of a run."""

    number: int
    rows: str
    """Which rows train and which test, in words."""
    counts: Counts
    metrics: dict[str, float]
    baseline: dict[str, float]
    fit_s: float


class Summary(Record):
    """One metric over the folds."""

    mean: float
    deviation: float | None
    """Standard deviation over the folds: how much it changes from one to the next."""
    low: float
    high: float
    """The interval of the mean, were the folds' test rows drawn again."""


class FoldsRun(WorkRecord):
    """One finished measurement on folds."""

    validation: dict[str, Any]
    """The folds as they were declared."""
    remark: str | None
    """Where the folds look at the future."""
    folds: tuple[FoldRecord, ...]
    metrics: dict[str, Summary]
    baseline: dict[str, float]
    """Means over the folds."""
    level: float
    """Of the intervals."""


def write_fold(file: Path, found: FoldResult, told: dict[str, Any]) -> None:
    """Write a fold whole, with what it was told."""
    facts = {
        "told": told,
        "number": found.number,
        "counts": found.counts.model_dump(mode="json"),
        "metrics": found.metrics,
        "baseline": found.baseline,
        "fit_s": found.fit_s,
    }
    arrays: dict[str, Any] = {
        f"{_RESAMPLED}{name}": values for name, values in found.resampled.items()
    }
    content = BytesIO()
    np.savez(
        content,
        facts=np.frombuffer(orjson.dumps(facts), dtype=np.uint8),
        **arrays,
    )
    write_whole(file, content.getvalue())


def read_fold(file: Path, told: dict[str, Any]) -> FoldResult | None:
    """Give the fold as an earlier attempt measured it; None where none did that was told alike."""
    if not file.is_file():
        return None
    with np.load(file, allow_pickle=False) as arrays:
        facts = orjson.loads(arrays["facts"].tobytes())
        if facts.pop("told") != orjson.loads(orjson.dumps(told)):
            return None
        return FoldResult(
            **facts | {"counts": Counts.model_validate(facts["counts"])},
            resampled={
                name.removeprefix(_RESAMPLED): arrays[name]
                for name in arrays.files
                if name.startswith(_RESAMPLED)
            },
        )
