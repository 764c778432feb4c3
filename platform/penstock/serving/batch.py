"""Batch scores: a table's rows, each with the features known at its time, scored into a table.

The rows come in slices of time; Ray Data spreads them over workers that each verify and load the
model once, and the scores stream into one commit: all of them are there, or none.
"""

import hashlib
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import DataError, DeclarationError
from penstock.features.historical import HistoricalReader
from penstock.features.pinned_rows import TimeSlice
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.registry.package import VerifiedPackage, verify
from penstock.registry.versions import ModelVersion
from penstock.scorer import load_scorer
from penstock.serving.score_stream import ScoreStream
from penstock.settings import Settings, load_settings
from penstock.use_cases import split_name

SCORE = "score"
_REPORT = "scores"
_SLICE = "slice"
_ROWS_PER_SLICE = 200_000
# A slice's join and its graph use threads of their own; half a slot each leaves Serve its share.
_CPUS_PER_WORKER = 0.5
_MAX_WORKERS_ON_ONE_MACHINE = 2
_CPUS_PER_WORKER_ON_A_CLUSTER = 4


class ScoringReport(Record):
    """What a scoring left, and from what; kept with the version of the table that it wrote."""

    model: str
    model_version: int
    model_digest: str
    source: str
    source_version: int
    feature_table_versions: dict[str, int]
    start: datetime
    end: datetime
    num_rows: int
    num_without_score: int
    """Rows for which the model gave no finite number: their score is null."""
    num_slices: int
    out: str
    out_version: int
    is_new: bool
    """False: these rows of this version were scored by this model before; nothing was written."""


@dataclass(frozen=True, kw_only=True)
class _Work:
    """All that a worker needs; it opens the rest itself."""

    settings: Settings
    model: ModelVersion
    source: str
    source_version: int

    def here(self) -> Settings:
        """The settings with the project's folder as this node has it."""
        root = self.settings.project_root
        return self.settings if root.is_dir() else load_settings()

    def open_package(self) -> VerifiedPackage:
        return verify(Path(self.model.path), self.here(), digest=self.model.digest)

    def open_reader(self, package: VerifiedPackage) -> HistoricalReader:
        signature = package.signature
        reader = HistoricalReader(
            self.here(),
            use_case=signature.use_case,
            service=signature.feature_service,
            table=self.source,
            version=self.source_version,
        )
        if set(signature.feature_names) - set(reader.feature_names):
            raise DeclarationError(
                f"the service {signature.feature_service} no longer has "
                + ", ".join(sorted(set(signature.feature_names) - set(reader.feature_names))),
                next_step="declare a new service for a new model, and leave the old one as it is",
            )
        return reader


class SliceScorer:
    """Scores slices, one after another, with a package that was verified and loaded once."""

    def __init__(self, work: _Work) -> None:
        package = work.open_package()
        self._work = work
        self._reader = work.open_reader(package)
        self._feature_names = package.signature.feature_names
        self._score = load_scorer(package.onnx)

    def __call__(self, batch: pa.Table) -> Iterator[pa.Table]:
        """Score the slices that the batch's rows describe; Ray Data's side."""
        for text in batch.column(_SLICE).to_pylist():
            yield self.score(TimeSlice.model_validate_json(text)).to_arrow(
                compat_level=pl.CompatLevel.oldest()
            )

    def score(self, part: TimeSlice) -> pl.DataFrame:
        """Give the slice's scores: key, event time, score, missing features, model, prediction."""
        reader, model = self._reader, self._work.model
        rows = reader.read(part)
        features = rows.select(
            pl.col(name).cast(pl.Float64).fill_null(np.nan) for name in self._feature_names
        )
        matrix = features.to_numpy(order="c")
        scores = self._score(matrix)
        return rows.select(
            *reader.row_columns,
            pl.Series(SCORE, np.where(np.isfinite(scores), scores, np.nan)).fill_nan(None),
            pl.Series("num_missing_features", np.isnan(matrix).sum(axis=1, dtype=np.int64)),
            pl.lit(model.name).alias("model"),
            pl.lit(model.version, dtype=pl.Int64).alias("model_version"),
            prediction_ids(rows.select(reader.key), model.digest, self._work.source),
        )


def prediction_ids(keys: pl.DataFrame, model_digest: str, source: str) -> pl.Series:
    """Name each prediction by its model, its table and its row: the same again, whenever scored.

    128 bits of a keyed BLAKE2b, in hex.
    """
    base = hashlib.blake2b(f"{model_digest}\0{source}\0".encode(), digest_size=16)

    def name(key: str) -> str:
        digest = base.copy()
        digest.update(key.encode())
        return digest.hexdigest()

    # The text of a key with a length before each part: no two keys share it.
    parts = [pl.col(column).cast(pl.String).fill_null("null") for column in keys.columns]
    sized = [pl.format("{}:{}", part.str.len_bytes(), part) for part in parts]
    texts = keys.select(pl.concat_str(sized)).to_series()
    return pl.Series("prediction_id", [name(text) for text in texts], dtype=pl.String)


def score_table(
    settings: Settings,
    *,
    model: ModelVersion,
    source: str,
    out: str,
    start: datetime | None = None,
    end: datetime | None = None,
    source_version: int | None = None,
    rows_per_slice: int = _ROWS_PER_SLICE,
    progress: Progress = silent,
) -> ScoringReport:
    """Append the scores of a table's rows with start <= event time < end to another table.

    Asked again for the same model, the same version of the table and the same period, it writes
    nothing and gives the first report. With a Ray at hand and more than one slice, Ray Data
    spreads them; a single slice is scored here.

    Args:
        settings: whose tables and models.
        model: the version that scores.
        source: the table with the rows; it has a contract.
        out: the table with the scores; made when absent.
        start: the first event time; None: the table's first row.
        end: the event time to stop before; None: after the table's last row.
        source_version: which version of the source; None: the newest.
        rows_per_slice: about how many rows are in memory at a time, for each worker.
        progress: told of rows scored.

    Raises:
        NotFoundError: no such table or version.
        DataError: there is no row in the period, or the tables can't be the same.
        IntegrityError: the model is not what was registered.
        BusyError: features were rebuilt meanwhile, or the out table is held by another writer.
    """
    split_name(out)
    if out == source or (tables.exists(settings, out) and SCORE not in _columns(settings, out)):
        raise DataError(
            f"{out} holds no scores, so none are appended to it", next_step="name another table"
        )
    contract = get_table(settings, source)
    pinned = tables.latest(settings, source, source_version).version
    work = _Work(settings=settings, model=model, source=source, source_version=pinned)
    reader = work.open_reader(work.open_package())
    first, last = _period(settings, contract.event_time, source, pinned, start, end)
    slices = reader.slices(first, last, max_rows=rows_per_slice)
    report = ScoringReport(
        model=model.name,
        model_version=model.version,
        model_digest=model.digest,
        source=source,
        source_version=pinned,
        feature_table_versions=reader.feature_table_versions,
        start=first,
        end=last,
        num_rows=sum(part.num_rows for part in slices),
        num_without_score=0,
        num_slices=len(slices),
        out=out,
        out_version=0,
        is_new=True,
    )
    transaction = _transaction(report)
    earlier = _earlier(settings, out, transaction)
    if earlier is not None:
        return earlier
    stream = ScoreStream(_scored(work, slices), reader.check_unchanged, report.num_rows, progress)
    with stream.reader() as reader_of_scores:
        version = tables.commit(
            settings,
            out,
            reader_of_scores,
            mode="append",
            partition_by=contract.partition_by,
            event_time=contract.event_time,
            transactions={transaction: 1},
            metadata={_REPORT: report.model_dump_json(), "transaction": transaction},
        )
    # Somebody else may have committed the same scores while ours were on their way.
    if version.metadata.get("transaction") == transaction:
        return _written(settings, report, version.version)
    return _earlier(settings, out, transaction) or report


def _columns(settings: Settings, table: str) -> list[str]:
    return tables.scan(settings, table).collect_schema().names()


def _period(
    settings: Settings,
    event_time: str,
    source: str,
    version: int,
    start: datetime | None,
    end: datetime | None,
) -> tuple[datetime, datetime]:
    """Narrow the period to the rows there are, so that equal work has one name."""
    time = pl.col(event_time)
    rows = tables.scan(settings, source, version=version).select(time)
    if start is not None:
        rows = rows.filter(time >= _utc(start))
    if end is not None:
        rows = rows.filter(time < _utc(end))
    after_last = time.max() + pl.duration(microseconds=1)
    first, last = rows.select(time.min().alias("first"), after_last.alias("last")).collect().row(0)
    if first is None:
        raise DataError(
            f"{source} has no row from {start or 'its begin'} up to {end or 'its end'}",
            next_step=f"`penstock data show {source}` tells which period it has",
        )
    return first, last


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def _transaction(report: ScoringReport) -> str:
    parts = (
        report.model_digest,
        report.source,
        str(report.source_version),
        report.start.isoformat(),
        report.end.isoformat(),
    )
    return "scores-" + hashlib.sha256("\0".join(parts).encode()).hexdigest()


def _earlier(settings: Settings, out: str, transaction: str) -> ScoringReport | None:
    if not tables.folder(settings, out).known_transactions([transaction]):
        return None
    for version in tables.history(settings, out):
        if version.metadata.get("transaction") == transaction:
            report = ScoringReport.model_validate_json(version.metadata[_REPORT])
            report = report.model_copy(update={"is_new": False})
            return _written(settings, report, version.version)
    return None


def _written(settings: Settings, report: ScoringReport, version: int) -> ScoringReport:
    """Add what only the written version knows."""

    def num_nulls(at: int) -> int:
        columns = tables.column_statistics(settings, report.out, version=at)
        return next(column.nulls for column in columns if column.name == SCORE)

    before = num_nulls(version - 1) if version else 0
    found = {"out_version": version, "num_without_score": num_nulls(version) - before}
    return report.model_copy(update=found)


def _scored(work: _Work, slices: Sequence[TimeSlice]) -> Iterator[pa.Table]:
    import ray

    if len(slices) == 1 or not ray.is_initialized():
        scorer = SliceScorer(work)
        for part in slices:
            yield scorer.score(part).to_arrow(compat_level=pl.CompatLevel.oldest())
        return
    import ray.data

    # Our own progress says it; Ray Data's lines would drown it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The context warns of deprecated settings of its own.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray.data.context")
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # As JSON: numpy's times, which Ray Data would make of them, know no time zone.
    items = [{_SLICE: part.model_dump_json()} for part in slices]
    scores = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        SliceScorer,
        fn_constructor_args=(work,),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_num_workers(len(slices))),
        num_cpus=_CPUS_PER_WORKER,
    )
    yield from scores.iter_batches(batch_size=None, batch_format="pyarrow")


def _num_workers(num_slices: int) -> int:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray left it so
    cpus = sum(node["Resources"].get("CPU", 0.0) for node in nodes if node["Alive"])
    if sum(bool(node["Alive"]) for node in nodes) == 1:
        return min(num_slices, _MAX_WORKERS_ON_ONE_MACHINE)
    return max(1, min(num_slices, int(cpus) // _CPUS_PER_WORKER_ON_A_CLUSTER))
