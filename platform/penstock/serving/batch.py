"""Batch scores: a table's rows, each with the features known at its time, scored into a table.

The rows come in slices of time. On one machine threads of this process score them; over several,
Ray Data spreads them to workers; each verifies and loads the model once. Each slice's scores are
kept as a part, and one commit takes all parts: the table has all of them, or none, and what a kill
interrupts goes on from the parts that are there.
"""

import hashlib
import logging
import shutil
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import UTC, datetime
from typing import Any

import polars as pl

from penstock.data import tables
from penstock.data.contracts import get_table
from penstock.errors import DataError
from penstock.locks import exclusive
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.registry.versions import ModelVersion
from penstock.serving.score_parts import ScoreParts, plan_parts, remove_abandoned
from penstock.serving.slice_scorer import SCORE, ScoringWork, SliceScorer
from penstock.settings import Settings
from penstock.use_cases import split_name

_REPORT = "scores"
# A slice reads the features of its own stretch and of a TTL before it: small ones read them twice.
# What a kill costs is one slice a worker, a few seconds.
_ROWS_PER_SLICE = 500_000
# The same command again, while the job of a killed command goes on, waits and gives its report.
_WAIT_S = 600.0
# Each has a slice in memory.
_MAX_THREADS = 4
# A slice's join and its graph use threads of their own; half a slot each leaves Serve its share.
_SLOTS_PER_WORKER = 0.5
_CPUS_PER_WORKER = 4


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
    num_slices_found: int = 0
    """Slices that an earlier run, which was stopped or killed, had scored."""
    out: str
    out_version: int
    is_new: bool
    """False: these rows of this version were scored by this model before; nothing was written."""


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
    nothing and gives the first report; where that run was killed, it goes on with the slices that
    are missing. Where Ray has several machines, Ray Data spreads the slices over them; else, and
    where there is one slice, they are scored here.

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
        BusyError: features were rebuilt meanwhile, another process has been scoring the same for
            ten minutes, or the out table is held by another writer.
    """
    split_name(out)
    if out == source or (tables.exists(settings, out) and SCORE not in _columns(settings, out)):
        raise DataError(
            f"{out} holds no scores, so none are appended to it", next_step="name another table"
        )
    contract = get_table(settings, source)
    pinned = tables.latest(settings, source, source_version).version
    work = ScoringWork(settings=settings, model=model, source=source, source_version=pinned)
    reader = work.open_reader(work.open_package())
    first, last = _period(settings, contract.event_time, source, pinned, start, end)
    transaction = _transaction(model, source, pinned, first, last)
    root = settings.storage_path / "scoring"
    own = root / f"{out}-{transaction.removeprefix('scores-')[:32]}"
    parts = plan_parts(
        own,
        slices=reader.slices(first, last, max_rows=rows_per_slice),
        feature_table_versions=reader.feature_table_versions,
        definition=reader.definition(),
    )
    what = f"this scoring of {source} into {out}"
    with exclusive(settings.storage_path / "locks" / own.name, what=what, wait_s=_WAIT_S):
        report = _earlier(settings, out, transaction)
        if report is None:
            remove_abandoned(root)
            parts.prepare()
            missing = parts.missing()
            report = ScoringReport(
                model=model.name,
                model_version=model.version,
                model_digest=model.digest,
                source=source,
                source_version=pinned,
                feature_table_versions=reader.feature_table_versions,
                start=first,
                end=last,
                num_rows=sum(part.num_rows for part in parts.slices),
                num_without_score=0,
                num_slices=len(parts.slices),
                num_slices_found=len(parts.slices) - len(missing),
                out=out,
                out_version=0,
                is_new=True,
            )
            _score(work, parts, missing, progress)
            progress("write scores", 0, report.num_rows)
            version = tables.commit(
                settings,
                out,
                parts.reader(),
                mode="append",
                partition_by=contract.partition_by,
                event_time=contract.event_time,
                transactions={transaction: 1},
                metadata={_REPORT: report.model_dump_json(), "transaction": transaction},
            )
            progress("write scores", report.num_rows, report.num_rows)
            report = _written(settings, report, version.version)
        # Only behind the commit; a kill before this line leaves it to the same command.
        shutil.rmtree(own, ignore_errors=True)
    return report


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


def _transaction(
    model: ModelVersion, source: str, version: int, first: datetime, last: datetime
) -> str:
    parts = (model.digest, source, str(version), first.isoformat(), last.isoformat())
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


def _score(
    work: ScoringWork, parts: ScoreParts, missing: Sequence[int], progress: Progress
) -> None:
    """Publish the missing parts, and tell how many rows have theirs."""
    total = sum(part.num_rows for part in parts.slices)
    done = total - sum(parts.slices[number].num_rows for number in missing)
    progress("score", done, total)
    for number in _scored(work, parts, missing):
        done += parts.slices[number].num_rows
        progress("score", done, total)


def _scored(work: ScoringWork, parts: ScoreParts, missing: Sequence[int]) -> Iterator[int]:
    if len(missing) <= 1 or _is_one_machine():
        return _scored_here(work, parts, missing)
    return _scored_by_workers(work, parts, missing)


def _is_one_machine() -> bool:
    import ray

    return not ray.is_initialized() or len(_live_nodes()) == 1


def _live_nodes() -> list[dict[str, Any]]:
    import ray

    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]  # Ray left it so
    return [node for node in nodes if node["Alive"]]


def _scored_here(work: ScoringWork, parts: ScoreParts, missing: Sequence[int]) -> Iterator[int]:
    """Score on threads: a worker takes seconds to start, and the driver's cores are the same."""
    own = threading.local()

    def score(number: int) -> int:
        if not hasattr(own, "scorer"):
            own.scorer = SliceScorer(work, parts)
        own.scorer.score(number)
        return number

    pool = ThreadPoolExecutor(min(_MAX_THREADS, pl.thread_pool_size()))
    try:
        for done in as_completed([pool.submit(score, number) for number in missing]):
            yield done.result()
    finally:
        # What is under way becomes a part; the rest is for who gives the command again.
        pool.shutdown(cancel_futures=True)


def _scored_by_workers(
    work: ScoringWork, parts: ScoreParts, missing: Sequence[int]
) -> Iterator[int]:
    import ray.data

    # Our own progress says it; Ray Data's lines would drown it.
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        # The context warns of deprecated settings of its own.
        warnings.filterwarnings("ignore", category=DeprecationWarning, module="ray.data.context")
        context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    items = [{"number": number} for number in missing]
    published = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        SliceScorer,
        fn_constructor_args=(work, parts),
        batch_size=1,
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_num_workers(len(items))),
        num_cpus=_SLOTS_PER_WORKER,
    )
    for batch in published.iter_batches(batch_size=None, batch_format="pyarrow"):
        yield from batch["number"].to_pylist()


def _num_workers(num_slices: int) -> int:
    cpus = sum(node["Resources"].get("CPU", 0.0) for node in _live_nodes())
    return max(1, min(num_slices, int(cpus) // _CPUS_PER_WORKER))
