"""Did serving see what training would have seen? Every logged cell beside the point-in-time join.

The served vectors come from the prediction log, the others from the join that training sets come
from, as of each request's own time. Each difference gets a verdict; see `skew_policy`.
"""

from datetime import UTC, datetime

import polars as pl

from penstock.data import tables
from penstock.errors import BusyError, UserError
from penstock.monitoring.comparison import Comparison
from penstock.monitoring.recomputation import Recomputation
from penstock.monitoring.skew_report import AuditReport, FeatureAudit, total
from penstock.progress import Progress, silent
from penstock.serving.log_collection import SERVED_AT, collect, predictions_table
from penstock.settings import Settings

_ROWS_PER_PART = 1 << 17


def audit(
    settings: Settings,
    use_case: str,
    *,
    since: datetime | None = None,
    until: datetime | None = None,
    progress: Progress = silent,
) -> AuditReport:
    """Collect the prediction log and compare what was served from `since` up to `until`.

    Raises:
        NotFoundError: no such use case, or a feature service that was served from is gone.
        UserError: no prediction was logged in the period, or events came before the first of them
            and after the features were built.
        BusyError: the features were rebuilt meanwhile.
    """
    collected = collect(settings, use_case, progress)
    rows = _logged(settings, use_case, since, until)
    num_logged = _count(rows)
    if not num_logged:
        raise UserError(
            f"no prediction of {use_case} was logged from {since or 'the begin'} up to "
            f"{until or 'now'}",
            next_step=f"`penstock data show {predictions_table(use_case)}` tells what there is",
        )
    comparisons: dict[str, Comparison] = {}
    num_done = num_waiting = num_given = 0
    served_from = ["feature_service", "feature_names", "views"]
    for same in rows.select(served_from).unique().sort(served_from).collect().iter_rows(named=True):
        service = same["feature_service"]
        if service not in comparisons:
            recomputation = Recomputation(settings, use_case, service)
            comparisons[service] = Comparison(settings, use_case, recomputation)
        comparison = comparisons[service]
        comparison.recomputation.check_served(same["feature_names"], same["views"])
        wanted = rows.filter([pl.col(name) == value for name, value in same.items()])
        brought = _brings_features(comparison.recomputation)
        num_given += _count(wanted.filter(brought))
        wanted = wanted.filter(~brought)
        complete_until = comparison.recomputation.complete_until
        if complete_until is not None:
            num_waiting += _count(wanted.filter(pl.col(SERVED_AT) >= complete_until))
            wanted = wanted.filter(pl.col(SERVED_AT) < complete_until)
        for part in wanted.collect_batches(chunk_size=_ROWS_PER_PART):
            if part.height:
                comparison.add(part)
            num_done += part.height
            progress("audit", num_done, num_logged - num_waiting - num_given, unit="predictions")
    if num_given == num_logged:
        raise UserError(
            f"all {num_given} predictions of the period brought their features themselves",
            next_step="there is nothing that the tables could give otherwise",
        )
    if not num_done:
        raise UserError(
            f"since the features of {use_case} were built, events came that served predictions "
            "may stand on",
            next_step=f"run `penstock features build {use_case}`; what a stream has online is in "
            "its table a minute later",
        )
    versions: dict[str, int] = {}
    features: list[FeatureAudit] = []
    for service, comparison in comparisons.items():
        if not comparison.recomputation.has_same_tables():
            raise BusyError(
                f"the feature tables behind {service} were rebuilt while they were read",
                next_step="try again when the build has ended",
            )
        versions |= comparison.recomputation.table_versions
        features += comparison.results()
    return AuditReport(
        use_case=use_case,
        since=since,
        until=until,
        num_predictions=num_done,
        num_waiting=num_waiting,
        num_given=num_given,
        num_cells=sum(feature.num_cells for feature in features),
        num_by_reason=total(feature.num_by_reason for feature in features),
        features=tuple(features),
        table_versions=versions,
        collected=collected,
    )


def _brings_features(recomputation: Recomputation) -> pl.Expr:
    """Whether a request has features of its own, which no table is the source of.

    Its text is what `log_collection` wrote: no blank before a colon, and a quote inside of a value
    has a backslash.
    """
    keys = [f'"{name}":' for name in recomputation.names_to_give]
    return pl.col("request").str.contains_any(keys) if keys else pl.lit(value=False)


def _logged(
    settings: Settings, use_case: str, since: datetime | None, until: datetime | None
) -> pl.LazyFrame:
    table = predictions_table(use_case)
    if not tables.exists(settings, table):
        raise UserError(
            f"no prediction of {use_case} was ever logged",
            next_step="deploy it and ask it for some; the setting serving.log_predictions is true "
            "by default",
        )
    rows = tables.scan(settings, table)
    time = pl.col(SERVED_AT)
    if since is not None:
        rows = rows.filter(time >= _utc(since))
    if until is not None:
        rows = rows.filter(time < _utc(until))
    return rows


def _count(rows: pl.LazyFrame) -> int:
    return int(rows.select(pl.len()).collect().item())


def _utc(time: datetime) -> datetime:
    return time if time.tzinfo else time.replace(tzinfo=UTC)
