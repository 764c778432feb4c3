"""Answered batches and logs of them, without a replica."""

import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from forks import forks
from penstock.features.online import OnlineRows
from penstock.features.online_plan import FieldSpec
from penstock.features.online_rows import NO_EVENT_US
from penstock.serving.prediction_log import AnsweredBatch, Asked, PredictionLog, SegmentHeader
from waiting import wait_for

AS_OF = datetime(2024, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)
AS_OF_US = int(AS_OF.timestamp() * 1_000_000)
HEADER = SegmentHeader(
    use_case="card_fraud",
    model="spills",
    version=3,
    digest="d1",
    feature_service="service",
    feature_names=("rides", "km"),
    fields=(
        FieldSpec(name="rider", dtype="int64"),
        FieldSpec(name="city", dtype="string"),
        FieldSpec(name="at", dtype="timestamp"),
        FieldSpec(name="fare", dtype="float64"),
        FieldSpec(name="is_member", dtype="bool"),
    ),
    views=("riders", "cities"),
)


def answered(
    name: str, *sizes: int, scores: Any = None, km: float = np.nan, served_at_us: int | None = None
) -> AnsweredBatch:
    """A batch of requests of so many rows each; the riders' row is a minute old, no city is known."""
    num_rows = sum(sizes)
    at = np.full(num_rows, AS_OF_US)
    rows = OnlineRows(
        values=np.column_stack([np.arange(num_rows, dtype=float), np.full(num_rows, km)]),
        missing=[("km",)] * num_rows,
        fields={
            "rider": np.arange(num_rows),
            "city": np.array(["Köln"] * num_rows, dtype=object),
            "at": at.astype("datetime64[us]"),
            "fare": np.full(num_rows, 0.1),
            "is_member": np.ones(num_rows, dtype=bool),
        },
        as_of_us=at,
        event_us={"riders": at - 60_000_000, "cities": np.full(num_rows, NO_EVENT_US)},
    )
    return AnsweredBatch.of(
        served_at_us=served_at_us or time.time_ns() // 1_000,
        requests=[Asked(f"{name}{n}", None, [{}] * size) for n, size in enumerate(sizes)],
        looked_up=[rows],
        scores=np.full(num_rows, 0.5) if scores is None else np.asarray(scores, dtype=float),
    )


def open_log(root: Path, **options: Any) -> PredictionLog:
    return PredictionLog(root, HEADER, **{"max_bytes": 1 << 30, "interval_s": 0.01, **options})


def _write_until_killed(root: Path, num_batches: int, written: Any) -> None:
    log = open_log(root)
    for number in range(num_batches):
        log.put(answered(f"killed{number}-", 2))
        wait_for(lambda: log._num_waiting == 0)
    written.set()
    time.sleep(60)


def killed_log(root: Path, num_batches: int = 3) -> None:
    """Leave what a replica leaves that was killed after so many batches were on the disk."""
    written = forks.Event()
    process = forks.Process(target=_write_until_killed, args=(root, num_batches, written))
    process.start()
    assert written.wait(60)
    process.kill()
    process.join()
