"""A training set for others to read: as a Ray Dataset, or as a table; a file at a time."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from penstock.data import tables
from penstock.data.tables import TableVersion
from penstock.errors import DataError
from penstock.features.training_set import TrainingSet, files_of, read_file
from penstock.progress import Progress, silent
from penstock.settings import Settings

if TYPE_CHECKING:
    import ray.data

_FILE = "file"
_TRAINING_SET = "training_set"


def to_ray_dataset(training_set: TrainingSet) -> "ray.data.Dataset":
    """Give the rows as a Ray Dataset: each file is read by the worker that takes it.

    For sets that no single process holds. Page checksums are verified; the rows' order is Ray
    Data's: the set's own if its context preserves order.

    Raises:
        IntegrityError: it has no files; when it is consumed, a file is damaged.
    """
    import ray.data

    files = [{_FILE: str(file)} for file in files_of(training_set)]
    return ray.data.from_items(files, override_num_blocks=len(files)).map_batches(
        partial(_read_block, training_set), batch_size=1, batch_format="pyarrow"
    )


def _read_block(training_set: TrainingSet, block: pa.Table) -> Iterator[pa.Table]:
    for file in block.column(_FILE).to_pylist():
        yield read_file(training_set, Path(file))


def to_table(
    settings: Settings, training_set: TrainingSet, table: str, progress: Progress = silent
) -> TableVersion:
    """Write the rows as a version of a table, in the place of the version before.

    Written already as its newest version, it stays as it is. A table has no order of its own: the
    set's is that of event time and key.

    Raises:
        DataError: the table holds something else than training sets.
        IntegrityError: a file of the set is damaged.
        StorageFullError: the disk is full; the table is as it was.
    """
    if tables.exists(settings, table):
        newest = tables.latest(settings, table)
        if newest.metadata.get(_TRAINING_SET) == training_set.id:
            return newest
        if _TRAINING_SET not in newest.metadata:
            raise DataError(
                f"{table} holds something else than training sets",
                next_step="name another table: this one would be replaced",
            )
    files = files_of(training_set)
    step = f"write {table}"

    def batches() -> Iterator[pa.RecordBatch]:
        num_written = 0
        progress(step, 0, training_set.num_rows)
        for file in files:
            for batch in read_file(training_set, file).to_batches():
                yield batch
                num_written += batch.num_rows
            progress(step, num_written, training_set.num_rows)

    schema = read_file(training_set, files[0]).schema
    return tables.commit(
        settings,
        table,
        pa.RecordBatchReader.from_batches(schema, batches()),
        mode="overwrite",
        partition_by="month",
        event_time=training_set.event_time,
        metadata={_TRAINING_SET: training_set.id},
    )
