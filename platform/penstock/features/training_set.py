"""Training sets: labelled rows with the features known at each row's time, kept by content.

A training set's id is a digest of what is in it and of the table versions that it came from. So
the same question asked twice has one answer on disk, and an id says all about a run's data.
"""

import hashlib
import shutil
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.errors import (
    BusyError,
    DeclarationError,
    IntegrityError,
    unknown_name,
)
from penstock.features.declarations import load_feature_objects
from penstock.features.service_join import PinnedRows, ServiceJoin
from penstock.features.store import open_store
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

_DATA_FILE = "data.parquet"
_RECORD_FILE = "training_set.json"
_ROWS_PER_GROUP = 1 << 18
_ATTEMPTS = 3


class TrainingSet(Record):
    """Labels and features of a period, as they were known at each row's own time."""

    id: str
    """SHA-256 over the content and the table versions."""
    use_case: str
    service: str
    label: str
    event_time: str
    table_versions: dict[str, int]
    feature_names: tuple[str, ...]
    num_rows: int
    path: str
    """The folder that holds it."""


def build_training_set(
    settings: Settings,
    *,
    use_case: str,
    service: str,
    label_table: str,
    label: str,
    start: datetime,
    end: datetime,
    version: int | None = None,
    extra_columns: Sequence[str] = (),
    progress: Progress = silent,
) -> TrainingSet:
    """Join the features of a service to every row of the label table with start <= time < end.

    Rows come in event-time order (then by the table's key), with the join keys, the event time,
    the extra columns, the label and the service's features in its order. A set that exists
    already is verified and used again.

    Raises:
        NotFoundError: no such use case, service, table, version or column.
        TrainingDataError: there is no row in the period.
        UserError: rows were added to the label table after the features were built from it.
        IntegrityError: the set exists already and its file is not what was written.
    """
    objects = load_feature_objects(settings, use_case)
    join = ServiceJoin(objects, objects.service(service))
    labels = PinnedRows(settings, label_table, version)
    kept = list(dict.fromkeys([*join.join_keys, labels.event_time, *extra_columns, label]))
    clash = sorted(set(kept) & set(join.feature_names))
    if clash:
        raise DeclarationError(
            f"{', '.join(clash)} would be both a feature and a column of the labels",
            next_step="leave it out of the extra columns",
        )
    join.check_built(settings, labels)
    store = open_store(settings)
    for attempt in range(1, _ATTEMPTS + 1):
        versions = join.source_versions(settings)
        frame = labels.read([*kept, *join.request_columns], start, end)
        progress("read labels", frame.height, frame.height)
        features = join.features(store, frame, labels.event_time)
        progress("join features", frame.height, frame.height)
        # The join reads each table's newest version; a build in between would mix two of them.
        if versions == join.source_versions(settings):
            break
        if attempt == _ATTEMPTS:
            raise BusyError(
                f"the feature tables of {use_case} were rebuilt while they were read",
                next_step="try again when the build has ended",
            )
    versions[label_table] = labels.version
    data = frame.select(kept).with_columns(features[n].alias(n) for n in join.feature_names)
    return _keep(
        settings,
        data,
        {
            "use_case": use_case,
            "service": service,
            "label": label,
            "event_time": labels.event_time,
            "table_versions": dict(sorted(versions.items())),
            "feature_names": join.feature_names,
        },
    )


def read_training_set(training_set: TrainingSet) -> pl.DataFrame:
    """Read the rows of a training set; page checksums are verified.

    Raises:
        IntegrityError: the file is gone, damaged, or not the one that was written.
    """
    file = Path(training_set.path) / _DATA_FILE
    try:
        table = pq.read_table(file, page_checksum_verification=True)
    except (OSError, pa.ArrowException) as error:
        raise IntegrityError(
            f"the training set {training_set.id[:12]} cannot be read from {file}: {error}",
            next_step=f"remove {training_set.path} and build it again",
        ) from error
    return pl.DataFrame(pl.from_arrow(table))


def load_training_set(settings: Settings, set_id: str) -> TrainingSet:
    """Find a training set by its id, wherever the storage has moved to since.

    Raises:
        NotFoundError: there is no training set of that id.
    """
    root = settings.storage_path / "training_sets"
    file = root / set_id / _RECORD_FILE
    # An id comes from a run's record; what is no digest must not lead out of the folder.
    if not (set_id.isalnum() and file.is_file()):
        raise unknown_name("training set", set_id, (p.parent.name for p in root.glob("*/*.json")))
    parts = orjson.loads(file.read_bytes())
    return TrainingSet(**{**parts, "path": str(file.parent)})


def content_digest(data: pl.DataFrame) -> str:
    """SHA-256 over names, types and values; the same for equal frames however they are stored."""
    digest = hashlib.sha256()
    for column in data.iter_columns():
        digest.update(f"{column.name}\0{column.dtype}\0{len(column)}\0".encode())
        digest.update(np.packbits(column.is_null().to_numpy()).tobytes())
        if column.dtype == pl.String:
            text = column.fill_null("")
            digest.update(text.str.len_bytes().to_numpy().astype(np.int64).tobytes())
            digest.update("".join(text.to_list()).encode())
            continue
        plain = column.to_physical()
        values = plain.fill_null(False if plain.dtype == pl.Boolean else 0).to_numpy()
        digest.update(np.ascontiguousarray(values).tobytes())
    return digest.hexdigest()


def _keep(settings: Settings, data: pl.DataFrame, facts: Mapping[str, Any]) -> TrainingSet:
    content = content_digest(data)
    # Sorted keys: the id must not depend on the order in which facts were gathered.
    basis = orjson.dumps({**facts, "content": content}, option=orjson.OPT_SORT_KEYS)
    set_id = hashlib.sha256(basis).hexdigest()
    root = settings.storage_path / "training_sets"
    folder = root / set_id
    made = TrainingSet(id=set_id, num_rows=data.height, path=str(folder), **facts)
    with exclusive(root / ".locks" / set_id, what=f"training set {set_id[:12]}", wait_s=600):
        if folder.exists():
            if content_digest(read_training_set(made)) != content:
                raise IntegrityError(
                    f"the training set {set_id[:12]} in {folder} is not what was written",
                    next_step="remove that folder and build it again",
                )
            return made
        partial = root / f".partial-{set_id}"
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        pq.write_table(
            data.to_arrow(compat_level=pl.CompatLevel.oldest()),
            partial / _DATA_FILE,
            compression="zstd",
            compression_level=1,
            row_group_size=_ROWS_PER_GROUP,
            # Without it most flipped bits are read back as other numbers, with no error.
            write_page_checksum=True,
        )
        (partial / _RECORD_FILE).write_bytes(orjson.dumps(made.model_dump(mode="json")))
        partial.rename(folder)
    return made
