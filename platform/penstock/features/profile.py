"""What a version of a feature table holds, and what moved since an older one.

The statistics that every commit leaves are read, not measured again; only the histograms take one
pass over the rows, and that pass is kept too (`data.histograms`).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import computed_field

from penstock.data import histograms, tables
from penstock.data.contracts import get_table
from penstock.data.histograms import Spread
from penstock.data.statistics import ColumnStatistics, Summary
from penstock.data.tables import TableVersion
from penstock.errors import NotFoundError, UserError
from penstock.features.declarations import load_feature_objects, load_feature_tables
from penstock.progress import Progress, silent
from penstock.records import Record
from penstock.settings import Settings
from penstock.use_cases import split_name

MOVED_BY = 0.1
"""A value column has moved when its distribution, or its share of missing values, differs so."""

Role = Literal["key", "time", "value"]


class ColumnProfile(Record):
    """One column; `before` is the same column in the version that it is held against."""

    name: str
    role: Role
    statistics: ColumnStatistics
    spread: Spread
    statistics_before: ColumnStatistics | None = None
    spread_before: Spread | None = None
    shift: float | None = None
    """How far the two distributions are apart, 0 to 1; None where there is nothing to compare.

    On a scale it is the Kolmogorov-Smirnov distance, right within 0.004: the most by which the
    shares of values up to any one point differ. For named values it is the share of rows that
    would have to change their value, as far as the most frequent values tell."""

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own advice
    @property
    def missing_share(self) -> float:
        """The share of nulls and NaNs."""
        return _missing_share(self.statistics)

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own advice
    @property
    def missing_share_before(self) -> float | None:
        """The same of the older version."""
        return _missing_share(self.statistics_before) if self.statistics_before else None

    @computed_field  # type: ignore[prop-decorator]  # pydantic's own advice
    @property
    def has_moved(self) -> bool:
        """Whether a value column is no longer what it was."""
        if self.role != "value" or self.statistics_before is None or not self.statistics.count:
            return False
        missing_by = abs(self.missing_share - _missing_share(self.statistics_before))
        return (self.shift or 0.0) >= MOVED_BY or missing_by >= MOVED_BY


class TableProfile(Record):
    """All columns of one version of a table."""

    table: TableVersion
    against: TableVersion | None
    columns: tuple[ColumnProfile, ...]
    columns_added: tuple[str, ...] = ()
    columns_gone: tuple[str, ...] = ()

    @property
    def moved(self) -> list[ColumnProfile]:
        """The columns that moved, the most moved first."""
        moved = [column for column in self.columns if column.has_moved]
        return sorted(moved, key=lambda column: -(column.shift or 0.0))


def tables_to_profile(
    settings: Settings, use_case: str, table: str | None, *, one_version: bool = False
) -> list[str]:
    """Name the tables: the one asked for, else the use case's feature tables, built or not.

    Where it declares no feature table, these are the tables that its views read.

    Args:
        settings: which project.
        use_case: a folder of the feature repo.
        table: one of the use case's tables.
        one_version: a version was named, which says something about one table only.

    Raises:
        NotFoundError: no such use case or table.
        UserError: a version was named and there are several tables.
    """
    declared = list(load_feature_tables(settings, use_case))
    if table is not None:
        if split_name(table)[0] != use_case:
            raise UserError(
                f"{table} is no table of {use_case}", allowed=f"names that start with {use_case}."
            )
        return [table]
    if not declared:
        views = load_feature_objects(settings, use_case).views.values()
        sources = (getattr(view.batch_source, "table", None) for view in views)
        declared = list(dict.fromkeys(name for name in sources if name))
    if not declared:
        raise NotFoundError(
            f"{use_case} has neither feature tables nor views over tables",
            next_step=f"name one with --table {use_case}.<name>",
        )
    if one_version and len(declared) > 1:
        raise UserError(
            f"a version of which table? {use_case} has {len(declared)}",
            allowed=", ".join(f"--table {name}" for name in declared),
        )
    return declared


def profile(
    settings: Settings,
    table: str,
    *,
    version: int | None = None,
    against: int | None = None,
    progress: Progress = silent,
) -> TableProfile:
    """Describe every column of a table version, beside an older one where it is named.

    Raises:
        NotFoundError: there is no such table or version.
        UserError: `against` is the version itself.
    """
    if not tables.exists(settings, table) and table in load_feature_tables(
        settings, split_name(table)[0]
    ):
        raise NotFoundError(
            f"{table} was not built yet",
            next_step=f"penstock features build {split_name(table)[0]}",
        )
    at = tables.latest(settings, table, version)
    if at.version == against:
        raise UserError(
            f"version {against} of {table} would be held against itself",
            allowed="another version",
            next_step=f"penstock data history {table}",
        )
    before = None if against is None else tables.latest(settings, table, against)
    now = tables.column_summaries(settings, table, version=at.version)
    bins = [histograms.bins_for(summary) for summary in now]
    spreads = histograms.spreads(settings, table, at.version, bins, progress)
    older: dict[str, Summary] = {}
    older_spreads: dict[str, Spread] = {}
    if before is not None:
        found = tables.column_summaries(settings, table, version=before.version)
        older = {summary.name: summary for summary in found}
        # On the newer version's bins, so that the two can be drawn over each other.
        shared = [b for b in bins if b.name in older]
        older_spreads = histograms.spreads(settings, table, before.version, shared, progress)
    roles = _roles(settings, table)
    columns = []
    for summary in now:
        column = ColumnProfile(
            name=summary.name,
            role=roles.get(summary.name, "value"),
            statistics=summary.statistics(),
            spread=spreads[summary.name],
        )
        if summary.name in older:
            then, spread_then = older[summary.name], older_spreads[summary.name]
            update = {
                "statistics_before": then.statistics(),
                "spread_before": spread_then,
                "shift": shift_of_named(column.spread, spread_then)
                if column.spread.num_named
                else shift(summary, then),
            }
            column = column.model_copy(update=update)
        columns.append(column)
    names = [summary.name for summary in now]
    return TableProfile(
        table=at,
        against=before,
        columns=tuple(columns),
        columns_added=tuple(n for n in names if n not in older) if before else (),
        columns_gone=tuple(n for n in older if n not in names),
    )


def shift(now: Summary, before: Summary) -> float | None:
    """Give the Kolmogorov-Smirnov distance of two columns, from their summaries alone.

    None where one has no values on a scale: texts, or nothing at all.
    """
    sides = [side.ordered_points() for side in (now, before)]
    if any(not len(points) for points, _ in sides):
        return None
    at = np.concatenate([points for points, _ in sides])
    reached = []
    for points, weights in sides:
        share = np.concatenate([[0.0], np.cumsum(weights)]) / weights.sum()
        reached.append(share[np.searchsorted(points, at, side="right")])
    return float(np.abs(reached[0] - reached[1]).max())


def shift_of_named(now: Spread, before: Spread) -> float | None:
    """Give the total variation distance of two columns of named values.

    Values that are not among the most frequent count as one.
    """
    sides = []
    for spread in (now, before):
        counts: dict[str | None, int] = {named.value: named.count for named in spread.common}
        counts[None] = spread.num_named - sum(counts.values())
        if not spread.num_named:
            return None
        sides.append({value: count / spread.num_named for value, count in counts.items()})
    values = sides[0].keys() | sides[1].keys()
    return sum(abs(sides[0].get(v, 0.0) - sides[1].get(v, 0.0)) for v in values) / 2


def _missing_share(statistics: ColumnStatistics) -> float:
    return (statistics.nulls + statistics.nans) / statistics.count if statistics.count else 0.0


def _roles(settings: Settings, table: str) -> dict[str, Role]:
    declared = load_feature_tables(settings, split_name(table)[0]).get(table)
    if declared is not None:
        return _named(declared.windows.entity, declared.windows.event_time)
    try:
        contract = get_table(settings, table)
    except NotFoundError:
        # A table that some command wrote, such as one of scores, has no contract.
        return {}
    return _named(contract.key, contract.event_time)


def _named(keys: Sequence[str], time: str) -> dict[str, Role]:
    roles: dict[str, Role] = dict.fromkeys(keys, "key")
    return {**roles, time: "time"}
