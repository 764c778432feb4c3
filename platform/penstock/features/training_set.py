"""Training sets: labelled rows with the features known at each row's time, kept by content.

A training set's id is a digest of what is in it and of the table versions that it came from. So
the same question asked twice has one answer on disk, and an id says all about a run's data.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from penstock.cluster.tasks import runner
from penstock.errors import (
    BusyError,
    DeclarationError,
    IntegrityError,
    unknown_name,
)
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.features.distributed_join import execute
from penstock.features.join_planner import JoinPath, SideSize, choose_path, row_bytes, side_size
from penstock.features.pinned_rows import PinnedRows, TimeSlice
from penstock.features.point_in_time import JoinPlan, execute_in_one_task
from penstock.features.service_join import ServiceJoin
from penstock.features.store import open_store
from penstock.locks import exclusive, private_folder
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings, load_settings

_RECORD_FILE = "training_set.json"
_ROWS_PER_GROUP = 1 << 18
_ROWS_PER_FILE = 1 << 20
_ATTEMPTS = 3


class TrainingSet(Record):
    """Labels and features of a period, as they were known at each row's own time."""

    id: str
    """SHA-256 over the content and the table versions."""
    use_case: str
    service: str
    label: str | None
    """None: the rows are of a model that needs no label."""
    event_time: str
    table_versions: dict[str, int]
    feature_names: tuple[str, ...]
    num_rows: int
    path: str
    """The folder that holds it."""


class JoinExplanation(Record):
    """How a training set would be joined, and why that way."""

    label_table: str
    label_table_version: int
    start: datetime
    end: datetime
    labels: SideSize
    views: tuple[SideSize, ...]
    path: JoinPath
    num_files: int


def explain(
    settings: Settings,
    *,
    use_case: str,
    service: str,
    label_table: str,
    label: str | None,
    start: datetime,
    end: datetime,
    extra_columns: Sequence[str] = (),
) -> JoinExplanation:
    """Say which way `build_training_set` would take; reads the tables' statistics only.

    Raises:
        NotFoundError: no such use case, service, table or column.
        TrainingDataError: there is no row in the period.
    """
    objects = load_feature_objects(settings, use_case)
    join = ServiceJoin(objects, objects.service(service))
    labels = PinnedRows(settings, label_table, None)
    columns = [*join.join_keys, *join.request_columns, *extra_columns, *_named(label)]
    slices = labels.slices(start, end, max_rows=_ROWS_PER_FILE)
    if not slices:
        raise labels.no_rows(start, end)
    schema = labels.scan(columns, start, end).collect_schema()
    checked = join.plan(open_store(settings), schema, labels.event_time)
    label_size, views, path = _path(settings, slices, schema, checked)
    return JoinExplanation(
        label_table=label_table,
        label_table_version=labels.version,
        start=slices[0].start,
        end=slices[-1].end,
        labels=label_size,
        views=tuple(views),
        path=path,
        num_files=len(slices),
    )


def build_training_set(
    settings: Settings,
    *,
    use_case: str,
    service: str,
    label_table: str,
    label: str | None,
    start: datetime,
    end: datetime,
    version: int | None = None,
    table_versions: Mapping[str, int] | None = None,
    extra_columns: Sequence[str] = (),
    progress: Progress = silent,
) -> TrainingSet:
    """Join the features of a service to every row of the label table with start <= time < end.

    Rows come in event-time order (then by the table's key), with the join keys, the event time,
    the extra columns, the label and the service's features in its order. A set that exists
    already is verified and used again. With `table_versions`, those of an earlier set, every table
    is read at its version there, else at its newest (the labels at `version`).

    Raises:
        NotFoundError: no such use case, service, table, version or column.
        TrainingDataError: there is no row in the period.
        UserError: rows were added to the label table after the features were built from it.
        IntegrityError: the set exists already and its file is not what was written.
    """
    objects = load_feature_objects(settings, use_case)
    join = ServiceJoin(objects, objects.service(service), at=table_versions)
    if table_versions is not None:
        version = table_versions[label_table]
    labels = PinnedRows(settings, label_table, version)
    kept = list(dict.fromkeys([*join.join_keys, labels.event_time, *extra_columns, *_named(label)]))
    clash = sorted(set(kept) & set(join.feature_names))
    if clash:
        raise DeclarationError(
            f"{', '.join(clash)} would be both a feature and a column of the labels",
            next_step="leave it out of the extra columns",
        )
    join.check_built(settings, labels)
    store = open_store(settings)
    columns = list(dict.fromkeys([*kept, *join.request_columns]))
    root = settings.storage_path / "training_sets"
    for _ in range(_ATTEMPTS):
        versions = join.source_versions(settings)
        slices = labels.slices(start, end, max_rows=_ROWS_PER_FILE)
        if not slices:
            raise labels.no_rows(start, end)
        schema = labels.scan(columns, start, end).collect_schema()
        checked = join.plan(store, schema, labels.event_time)
        _, _, path = _path(settings, slices, schema, checked)
        with private_folder(root / ".unfinished", what="training sets in the making") as own:
            folder = own / "set"
            folder.mkdir()
            sink = _Sink(settings, use_case, service, tuple(kept), folder)
            if path.kind == "one task":
                frame = labels.read(columns, start, end)
                progress("read labels", frame.height, frame.height)
                digests = _join_here(frame, slices, checked, sink)
            else:
                digests = list(
                    execute(
                        checked,
                        [labels.scan(columns, part.start, part.end) for part in slices],
                        sink,
                        num_buckets=path.num_buckets,
                        scratch=settings.storage_path / "scratch",
                        run=runner(),
                        progress=progress,
                    )
                )
            num_rows = sum(part.num_rows for part in slices)
            progress("join features", num_rows, num_rows)
            # The join reads each table's newest version; a build in between would mix two of them.
            if versions == join.source_versions(settings):
                versions[label_table] = labels.version
                facts = {
                    "use_case": use_case,
                    "service": service,
                    "label": label,
                    "event_time": labels.event_time,
                    "table_versions": dict(sorted(versions.items())),
                    "feature_names": join.feature_names,
                }
                return _keep(root, folder, digests, num_rows, facts)
    raise BusyError(
        f"the feature tables of {use_case} were rebuilt while they were read",
        next_step="try again when the build has ended",
    )


def _named(label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def read_training_set(training_set: TrainingSet) -> pl.DataFrame:
    """Read the rows of a training set; page checksums are verified.

    Raises:
        IntegrityError: a file is gone, damaged, or not the one that was written.
    """
    parts = [pl.from_arrow(read_file(training_set, file)) for file in files_of(training_set)]
    data = pl.concat([pl.DataFrame(part) for part in parts])
    if data.height != training_set.num_rows:
        raise damaged(training_set, f"{data.height:,} of {training_set.num_rows:,} rows are there")
    return data


def files_of(training_set: TrainingSet) -> list[Path]:
    """Name the files that hold the rows, in the rows' order.

    Raises:
        IntegrityError: there is none.
    """
    files = _files(Path(training_set.path))
    if not files:
        raise damaged(training_set, "it has no files")
    return files


def read_file(training_set: TrainingSet, file: Path) -> pa.Table:
    """Read one file of a set; page checksums are verified.

    Raises:
        IntegrityError: it is gone or damaged.
    """
    try:
        return pq.read_table(file, page_checksum_verification=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise damaged(training_set, str(error)) from error


def _files(folder: Path) -> list[Path]:
    return sorted(folder.glob("data-*.parquet"))


def damaged(training_set: TrainingSet, what: str) -> IntegrityError:
    """Say that a set is not what was written, and what to do."""
    return IntegrityError(
        f"the training set {training_set.id[:12]} cannot be read from {training_set.path}: {what}",
        next_step=f"remove {training_set.path} and build it again",
    )


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


def service_digest(settings: Settings, use_case: str, service: str) -> str:
    """Give a digest of a feature service's definition, down to its functions and windows.

    Raises:
        NotFoundError: no such use case or service.
    """
    objects = load_feature_objects(settings, use_case)
    join = ServiceJoin(objects, objects.service(service))
    return join.definition(load_feature_tables(settings, use_case))


def content_digest(data: pl.DataFrame) -> str:
    """SHA-256 over names, types and values; the same for equal frames however they are stored."""
    return columns_digest(data.iter_columns())


def columns_digest(columns: Iterable[pl.Series]) -> str:
    """Give the `content_digest` of a frame of these columns."""
    digest = hashlib.sha256()
    for column in columns:
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


def _path(
    settings: Settings, slices: Sequence[TimeSlice], schema: pl.Schema, checked: JoinPlan
) -> tuple[SideSize, list[SideSize], JoinPath]:
    labels = SideSize(
        name="labels",
        num_rows=sum(part.num_rows for part in slices),
        row_bytes=row_bytes(schema.dtypes()),
    )
    views = [side_size(view) for view in checked.views]
    budget_bytes = settings.feature_store.join_memory_bytes
    return labels, views, choose_path(labels, views, budget_bytes=budget_bytes)


@dataclass(frozen=True)
class _Sink:
    """Writes joined rows as one file of the set, in whatever process they were joined."""

    settings: Settings
    use_case: str
    service: str
    kept: tuple[str, ...]
    folder: Path

    def __call__(self, number: int, joined: pl.DataFrame) -> str:
        return self.keep(number, joined, joined)

    def keep(self, number: int, rows: pl.DataFrame, stored: pl.DataFrame) -> str:
        """Compute what functions add, write the file, and give its content's digest."""
        here = self.settings if self.settings.project_root.is_dir() else load_settings()
        objects = load_feature_objects(here, self.use_case)
        join = ServiceJoin(objects, objects.service(self.service))
        features = join.complete(rows, stored)
        data = rows.select(self.kept).with_columns(features[n].alias(n) for n in join.feature_names)
        file = self.folder / f"data-{number:05}.parquet"
        unfinished = file.with_suffix(".unfinished")
        pq.write_table(
            data.to_arrow(compat_level=pl.CompatLevel.oldest()),
            unfinished,
            # Read by every fit, written once: a tenth larger than zstd, read in half the time.
            compression="lz4",
            row_group_size=_ROWS_PER_GROUP,
            # Without it most flipped bits are read back as other numbers, with no error.
            write_page_checksum=True,
        )
        unfinished.replace(file)
        return content_digest(data)


def _join_here(
    frame: pl.DataFrame, slices: Sequence[TimeSlice], checked: JoinPlan, sink: _Sink
) -> list[str]:
    needed = checked.labels.names()
    stored = execute_in_one_task(checked, frame.select(needed)).drop(needed)
    digests: list[str] = []
    start = 0
    for number, part in enumerate(slices):
        rows = frame.slice(start, part.num_rows)
        digests.append(sink.keep(number, rows, stored.slice(start, part.num_rows)))
        start += part.num_rows
    return digests


def _keep(
    root: Path, unfinished: Path, digests: Sequence[str], num_rows: int, facts: Mapping[str, Any]
) -> TrainingSet:
    # Sorted keys: the id must not depend on the order in which facts were gathered.
    basis = orjson.dumps({**facts, "content": digests}, option=orjson.OPT_SORT_KEYS)
    set_id = hashlib.sha256(basis).hexdigest()
    folder = root / set_id
    made = TrainingSet(id=set_id, num_rows=num_rows, path=str(folder), **facts)
    with exclusive(root / ".locks" / set_id, what=f"training set {set_id[:12]}", wait_s=600):
        if folder.exists():
            found = [pl.from_arrow(read_file(made, file)) for file in _files(folder)]
            if [content_digest(pl.DataFrame(part)) for part in found] != list(digests):
                raise damaged(made, "it is not what was written")
            return made
        (unfinished / _RECORD_FILE).write_bytes(orjson.dumps(made.model_dump(mode="json")))
        unfinished.rename(folder)
    return made
