"""Splits a block of rows into those that keep the contract and those that do not, with why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
import pandera.polars as pa
import polars as pl
from pandera.config import config_context

from penstock.data.contracts import Table
from penstock.data.conversion import convert, within_years
from penstock.errors import DataError

ROW = "__row"
BAD_ROWS = pl.Schema(
    {
        "row": pl.Int64(),
        "column": pl.String(),
        "rule": pl.String(),
        "value": pl.String(),
        "record": pl.String(),
    }
)
_MAX_VALUE_CHARS = 500


@dataclass(frozen=True)
class RawBlock:
    """Consecutive rows of a source as they were read: typed, as text, or as Python objects."""

    first_row: int
    columns: Mapping[str, pl.Series | Sequence[Any]]
    num_rows: int

    def records(self, rows: Sequence[int]) -> list[str]:
        """The rows at these places of the block as JSON texts."""
        columns = {
            name: [_json_value(v) for v in _take(values, rows)]
            for name, values in self.columns.items()
        }
        return [
            orjson.dumps({name: values[i] for name, values in columns.items()}, default=str).decode(
                errors="replace"
            )
            for i in range(len(rows))
        ]

    def texts(self, column: str, rows: Sequence[int]) -> list[str | None]:
        """The values of a column at these places as they were read; `*` is no column."""
        if column not in self.columns:
            return [None] * len(rows)
        values = _take(self.columns[column], rows)
        return [None if v is None else str(v)[:_MAX_VALUE_CHARS] for v in values]


def _take(values: pl.Series | Sequence[Any], rows: Sequence[int]) -> Sequence[Any]:
    if isinstance(values, pl.Series):
        picked = values.gather(list(rows))
        if isinstance(picked.dtype, pl.Datetime | pl.Date):
            # Python has no dates beyond the year 9999; their number is still worth keeping.
            numbers = picked.to_physical().cast(pl.String)
            sound = within_years(picked)
            return sound.dt.to_string("iso").zip_with(sound.is_not_null(), numbers).to_list()
        return picked.to_list()
    return [values[i] for i in rows]


def _json_value(value: Any) -> Any:
    # Not finite numbers and wide integers have no JSON form; their text does.
    is_plain = isinstance(value, str | bool | None) or (
        isinstance(value, int) and -(2**63) <= value < 2**63
    )
    return value if is_plain or (isinstance(value, float) and value - value == 0) else str(value)


@dataclass(frozen=True)
class Checked:
    """What came of a block.

    Attributes:
        kept: the contract's columns and `ROW`, the position in the source.
        bad: one line a bad row, with the first rule that it broke (`BAD_ROWS`).
        num_values: by column, the values that are not null.
        num_failed: by column, those of them that are not of the type.
    """

    kept: pl.DataFrame
    bad: pl.DataFrame
    num_values: dict[str, int]
    num_failed: dict[str, int]


def check(block: RawBlock, table: Table) -> Checked:
    """Hold a block against the contract; a row stays whole or goes to quarantine whole.

    Raises:
        DataError: a check of the contract failed for the block as a whole, not for single rows.
    """
    failures: list[pl.DataFrame] = []
    typed: dict[str, pl.Series] = {}
    num_values: dict[str, int] = {}
    num_failed: dict[str, int] = {}
    for name, dtype in table.columns.items():
        given = block.columns[name]
        converted = convert(given, dtype, zone=table.zone)
        typed[name] = converted.values.alias(name)
        num_failed[name] = int(converted.failed.sum())
        num_nulls = converted.values.null_count()
        num_values[name] = block.num_rows - num_nulls + num_failed[name]
        if num_failed[name]:
            failures.append(_failures(converted.failed, name, "type", order=0))
        if dtype.is_float():
            not_finite = ~converted.values.is_finite().fill_null(True)
            if not_finite.any():
                failures.append(_failures(not_finite, name, "finite", order=1))
    frame = pl.DataFrame(typed)
    failures += _contract_failures(frame, table)
    if not failures:
        bad_rows: list[int] = []
        bad = pl.DataFrame(schema=BAD_ROWS)
    else:
        first = pl.concat(failures).sort("row", "order", maintain_order=True)
        first = first.unique("row", keep="first", maintain_order=True)
        bad_rows = first["row"].to_list()
        values: dict[int, str | None] = {}
        for (column,), part in first.group_by("column"):
            rows = part["row"].to_list()
            values.update(zip(rows, block.texts(str(column), rows), strict=True))
        bad = first.select(
            (pl.col("row") + block.first_row).alias("row"),
            "column",
            "rule",
            pl.Series("value", [values[row] for row in bad_rows], dtype=pl.String),
            pl.Series("record", block.records(bad_rows), dtype=pl.String),
        )
    kept = frame.with_columns(
        pl.int_range(block.first_row, block.first_row + block.num_rows, dtype=pl.Int64).alias(ROW)
    )
    if bad_rows:
        kept = kept.filter(~(pl.col(ROW) - block.first_row).is_in(bad_rows))
    return Checked(kept, bad, num_values, num_failed)


def _failures(failed: pl.Series, column: str, rule: str, *, order: int) -> pl.DataFrame:
    return pl.DataFrame({"row": failed.arg_true().cast(pl.Int64)}).with_columns(
        pl.lit(column).alias("column"),
        pl.lit(rule).alias("rule"),
        pl.lit(order, dtype=pl.Int32).alias("order"),
    )


def _contract_failures(frame: pl.DataFrame, table: Table) -> list[pl.DataFrame]:
    try:
        # An environment's PANDERA_VALIDATION_* must not switch a contract off.
        with config_context(validation_enabled=True, validation_depth="SCHEMA_AND_DATA"):
            table.schema.validate(frame, lazy=True)
    except pa.errors.SchemaErrors as errors:
        cases = errors.failure_cases
        whole = cases.filter(pl.col("index").is_null())
        if whole.height:
            rule, case = whole.select("check", "failure_case").row(0)
            raise DataError(
                f"the rows break {rule} of {table.name} as a whole: {str(case)[:200]}",
                next_step="a contract's checks must each answer for single rows",
            ) from None
        return [
            cases.select(
                pl.col("index").cast(pl.Int64).alias("row"),
                pl.col("column").cast(pl.String).fill_null("*"),
                pl.col("check").cast(pl.String).alias("rule"),
                pl.lit(2, dtype=pl.Int32).alias("order"),
            )
        ]
    return []
