"""Training sets: labelled rows with the features known at each row's time, kept by content.

A training set's id is a digest of what is in it and of the table versions that it came from. So
the same question asked twice has one answer on disk, and an id says all about a run's data.
"""

import copy
import hashlib
import shutil
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, cast

import numpy as np
import orjson
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureService, FeatureStore
from feast.feature_view_projection import FeatureViewProjection
from feast.infra.offline_stores.offline_utils import get_offline_store_from_config

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import (
    BusyError,
    DeclarationError,
    IntegrityError,
    TrainingDataError,
    unknown_name,
)
from penstock.features.declarations import FeatureObjects, function_of, load_feature_objects
from penstock.features.store import open_store, registered_view
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings

_EVENT_TIMESTAMP = "event_timestamp"
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
        IntegrityError: the set exists already and its file is not what was written.
    """
    objects = load_feature_objects(settings, use_case)
    declared = objects.service(service)
    labels = _Labels(settings, label_table, version)
    store = open_store(settings)
    for attempt in range(1, _ATTEMPTS + 1):
        versions = _source_versions(settings, objects, declared)
        frame = labels.read(_needed(objects, declared, label, extra_columns, labels), start, end)
        progress("read labels", frame.height, frame.height)
        data = _join(store, objects, declared, frame, labels, label, extra_columns)
        progress("join features", data.height, data.height)
        # The join reads each table's newest version; a build in between would mix two of them.
        if versions == _source_versions(settings, objects, declared):
            break
        if attempt == _ATTEMPTS:
            raise BusyError(
                f"the feature tables of {use_case} were rebuilt while they were read",
                next_step="try again when the build has ended",
            )
    versions[label_table] = labels.version
    return _keep(
        settings,
        data,
        {
            "use_case": use_case,
            "service": service,
            "label": label,
            "event_time": labels.event_time,
            "table_versions": dict(sorted(versions.items())),
            "feature_names": _feature_names(declared),
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


class _Labels:
    """The label table at one pinned version."""

    def __init__(self, settings: Settings, name: str, version: int | None) -> None:
        contract = get_table(settings, name)
        self.name = name
        self.event_time = contract.event_time
        self.key = contract.key
        self.version = tables.latest(settings, name, version).version
        self._rows = tables.scan(settings, name, version=self.version)

    def read(self, columns: Sequence[str], start: datetime, end: datetime) -> pl.DataFrame:
        known = self._rows.collect_schema().names()
        for column in columns:
            if column not in known:
                raise unknown_name(f"column of {self.name}", column, known)
        time = pl.col(self.event_time)
        order = [self.event_time, *self.key]
        frame = (
            self._rows.filter((time >= _utc(start)) & (time < _utc(end)))
            .select(list(dict.fromkeys([*columns, *order])))
            .sort(order, maintain_order=True)
            .collect()
        )
        if not frame.height:
            raise TrainingDataError(
                f"{self.name} has no row from {_utc(start)} up to {_utc(end)}",
                next_step="ingest that period, or change the model's split",
            )
        return frame


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _feature_names(service: FeatureService) -> list[str]:
    return [f.name for view in service.feature_view_projections for f in view.features]


def _stored_views(
    objects: FeatureObjects, service: FeatureService
) -> dict[str, FeatureViewProjection]:
    """What to take from each stored view: the service's features, and its functions' inputs."""
    wanted: dict[str, FeatureViewProjection] = {}
    for projection in service.feature_view_projections:
        sources = [projection]
        if projection.name in objects.on_demand_views:
            view = objects.on_demand_views[projection.name]
            sources = list(view.source_feature_view_projections.values())
        for source in sources:
            if source.name not in wanted:
                wanted[source.name] = copy.copy(source)
                wanted[source.name].features = list(source.features)
                continue
            known = {f.name for f in wanted[source.name].features}
            wanted[source.name].features += [f for f in source.features if f.name not in known]
    return wanted


def _request_columns(objects: FeatureObjects, service: FeatureService) -> list[str]:
    return [
        field.name
        for projection in service.feature_view_projections
        if projection.name in objects.on_demand_views
        for source in objects.on_demand_views[projection.name].source_request_sources.values()
        for field in source.schema
    ]


def _join_keys(objects: FeatureObjects, service: FeatureService) -> list[str]:
    keys = [
        projection.join_key_map.get(key, key)
        for projection in service.feature_view_projections
        if projection.name in objects.views
        for key in objects.views[projection.name].join_keys
    ]
    return list(dict.fromkeys(keys))


def _needed(
    objects: FeatureObjects,
    service: FeatureService,
    label: str,
    extra_columns: Sequence[str],
    labels: _Labels,
) -> list[str]:
    columns = [*_join_keys(objects, service), labels.event_time, *extra_columns, label]
    return list(dict.fromkeys([*columns, *_request_columns(objects, service)]))


def _source_versions(
    settings: Settings, objects: FeatureObjects, service: FeatureService
) -> dict[str, int]:
    versions = {}
    for name in _stored_views(objects, service):
        table = getattr(objects.views[name].batch_source, "table", None)
        if table is None:
            raise DeclarationError(
                f"the feature view {name!r} reads a source that has no versions",
                allowed="a DeltaSource with table=…, so that a training set can say what it read",
            )
        versions[table] = tables.latest(settings, table).version
    return versions


def _join(
    store: FeatureStore,
    objects: FeatureObjects,
    service: FeatureService,
    frame: pl.DataFrame,
    labels: _Labels,
    label: str,
    extra_columns: Sequence[str],
) -> pl.DataFrame:
    keys = _join_keys(objects, service)
    stored = _stored_features(store, objects, service, frame, labels.event_time, keys)
    computed = _computed_features(objects, service, frame, stored)
    names = _feature_names(service)
    kept = list(dict.fromkeys([*keys, labels.event_time, *extra_columns, label]))
    clash = sorted(set(kept) & set(names))
    if clash:
        raise DeclarationError(
            f"{', '.join(clash)} would be both a feature and a column of the labels",
            next_step="leave it out of the extra columns",
        )
    available = stored | computed
    return frame.select(kept).with_columns(available[name].alias(name) for name in names)


def _stored_features(
    store: FeatureStore,
    objects: FeatureObjects,
    service: FeatureService,
    frame: pl.DataFrame,
    event_time: str,
    keys: Sequence[str],
) -> dict[str, pl.Series]:
    wanted = _stored_views(objects, service)
    if not wanted:
        return {}
    for name in wanted:
        registered_view(store, objects.views[name])
    offline = get_offline_store_from_config(store.config.offline_store)
    job = offline.get_historical_features(
        config=store.config,
        feature_views=[objects.views[name].with_projection(p) for name, p in wanted.items()],
        feature_refs=[f"{_ref(p)}:{f.name}" for p in wanted.values() for f in p.features],
        # Feast's interface speaks of pandas and of its own registries; ours takes these too.
        entity_df=cast(Any, frame.select(*keys, pl.col(event_time).alias(_EVENT_TIMESTAMP))),
        registry=cast(Any, _NoFunctions()),
        project=store.project,
    )
    joined = pl.DataFrame(pl.from_arrow(job.to_arrow()))
    if joined.height != frame.height:
        raise AssertionError(f"{frame.height} label rows became {joined.height}")
    return {f.name: joined[f.name] for view in wanted.values() for f in view.features}


def _ref(projection: FeatureViewProjection) -> str:
    # Feast's own name_to_use() carries no types.
    return projection.name_alias or projection.name


class _NoFunctions:
    """A registry without on-demand views, for a join that asks for none.

    Feast would unpickle the functions of all that its registry has, asked for or not
    (CVE-2026-18948); and would call them on lists of Python objects.
    """

    def list_on_demand_feature_views(self, *_args: Any, **_kwargs: Any) -> list[Any]:
        return []


def _computed_features(
    objects: FeatureObjects,
    service: FeatureService,
    frame: pl.DataFrame,
    stored: Mapping[str, pl.Series],
) -> dict[str, pl.Series]:
    computed: dict[str, pl.Series] = {}
    for projection in service.feature_view_projections:
        view = objects.on_demand_views.get(projection.name)
        if view is None:
            continue
        inputs = {
            field.name: _array(frame[field.name])
            for source in view.source_request_sources.values()
            for field in source.schema
        }
        for source in view.source_feature_view_projections.values():
            inputs |= {f.name: stored[f.name].cast(pl.Float64).to_numpy() for f in source.features}
        results = function_of(view)(inputs)
        computed |= {f.name: pl.Series(f.name, results[f.name]) for f in projection.features}
    return computed


def _array(column: pl.Series) -> Any:
    # The arrays that a request is turned into have the same types; see online.py.
    if isinstance(column.dtype, pl.Datetime):
        return column.dt.convert_time_zone("UTC").dt.replace_time_zone(None).to_numpy()
    return column.to_numpy()


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
