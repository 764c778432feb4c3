"""A worker that dies in the middle of a distributed join costs its own task, not the join."""

import os
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest
import ray

from penstock.cluster import connection
from penstock.cluster.tasks import RunOnRay
from penstock.features import point_in_time
from penstock.features.distributed_join import execute
from worlds import labels_of, side, source_of

pytestmark = pytest.mark.ray

NUM_LABELS, ROWS_PER_CHUNK = 1000, 250


@pytest.fixture
def connected(project, ray_cluster) -> Iterator[None]:
    connection.connect(project.settings)
    # A worker can't import a test.
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    yield
    ray.shutdown()


@dataclass(frozen=True)
class DeadlySink:
    """Kills its worker the first time that the third chunk comes to it."""

    folder: Path

    def __call__(self, number: int, frame: pl.DataFrame) -> pl.DataFrame:
        mark = self.folder / "died"
        if number == 2 and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return frame


def join(
    folder: Path, *, in_order: bool = True, max_retries: int
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The join with a dying worker, and the same in one task; out of order it goes by entity."""
    times = [n if in_order else n * 37 % NUM_LABELS for n in range(NUM_LABELS)]
    labels = labels_of([("a", n % 7, time) for n, time in enumerate(times)])
    view = side(source_of([("a", n % 7, n, 0) for n in range(0, NUM_LABELS, 3)]), "shop")
    checked = point_in_time.plan(labels.schema, [view], event_time="at")
    starts = range(0, NUM_LABELS, ROWS_PER_CHUNK)
    found = execute(
        checked,
        [labels.lazy().slice(start, ROWS_PER_CHUNK) for start in starts],
        DeadlySink(folder),
        num_buckets=3,
        scratch=folder / "scratch",
        run=RunOnRay(max_in_flight=2, max_retries=max_retries),
        rows_per_chunk=50,
    )
    return pl.concat(list(found)), point_in_time.execute_in_one_task(checked, labels)


@pytest.mark.usefixtures("connected")
class TestKilledWorker:
    @pytest.mark.parametrize("in_order", [True, False], ids=["by time", "by entity"])
    def test_its_task_is_run_again_and_no_row_is_lost(self, tmp_path: Path, in_order: bool):
        many, one = join(tmp_path, in_order=in_order, max_retries=2)
        assert (tmp_path / "died").exists()
        assert many.equals(one)

    def test_without_retries_the_join_would_fail(self, tmp_path: Path):
        with pytest.raises(ray.exceptions.WorkerCrashedError):
            join(tmp_path, max_retries=0)
