"""From the bytes of pushed events to the rows that a table could take, or to the one refusal.

What the contract's types say is told at once: the sender can mend it. What its rules say about
values (ranges, membership, keys) is the stream's to judge, which sets such rows aside as any ingest
does. Pure: no I/O here.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

import orjson
import polars as pl

from penstock.data.contracts import EVENT_TIME, Table
from penstock.data.conversion import convert
from penstock.data.events import MAX_EVENT_BYTES
from penstock.errors import RequestError
from penstock.serving.requests import load, shown, wrong_type

LINES = (b"application/x-ndjson", b"application/jsonl")
"""Content types of bodies with one JSON object a line."""
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d{1,6})?(Z|[+-]\d\d:\d\d)", re.ASCII)


def read_events(body: bytes, table: Table, *, is_lines: bool) -> list[bytes]:
    """Read an array of objects, one object, or lines of objects.

    Returns:
        Each event's columns of the table as one JSON object without a line end.

    Raises:
        RequestError: 400 or 422, with the path of the offending part, as `$[3].amount`.
    """
    documents = _lines(body) if is_lines else load(body)
    if type(documents) is not list:
        documents = [documents]
    if not documents:
        raise RequestError(422, "no_events", "the body is empty; send at least one event")
    records = [_record(given, index, table) for index, given in enumerate(documents)]
    events = [_dump(record, index) for index, record in enumerate(records)]
    _check_types(records, table)
    return events


def _lines(body: bytes) -> list[Any]:
    documents = []
    for number, line in enumerate(body.split(b"\n"), start=1):
        if line.strip():
            try:
                documents.append(load(line))
            except RequestError as error:
                raise RequestError(
                    error.status, error.code, f"line {number}: {error.message}", path=error.path
                ) from None
    return documents


def _record(given: Any, index: int, table: Table) -> dict[str, Any]:
    """Pick the table's columns; their values are null, text, a boolean or a finite number."""
    path = f"$[{index}]"
    if type(given) is not dict:
        raise wrong_type(given, "an object", path)
    if table.schema.strict is True:
        extra = next((key for key in given if key not in table.columns), None)
        if extra is not None:
            allowed = ", ".join(table.columns)
            raise RequestError(
                422, "unknown_key", f"{shown(extra)} is no column; allowed: {allowed}", path=path
            )
    record = {}
    for name in table.columns:
        if name not in given:
            raise RequestError(422, "missing_column", f"the column {name} is missing", path=path)
        value = given[name]
        if value is not None and type(value) not in (str, bool, int, float):
            raise wrong_type(value, _wanted(table, name), f"{path}.{name}")
        if type(value) is float and not math.isfinite(value):
            raise RequestError(
                422, "out_of_range", f"{name} is a number beyond floats", path=f"{path}.{name}"
            )
        record[name] = value
    return record


def _dump(record: Mapping[str, Any], index: int) -> bytes:
    try:
        event = orjson.dumps(record)
    except orjson.JSONEncodeError:
        for name, value in record.items():
            try:
                orjson.dumps(value)
            except orjson.JSONEncodeError:
                what = "beyond 64 bits" if isinstance(value, int) else "no valid text"
                raise RequestError(
                    422, "out_of_range", f"{name} is {what}", path=f"$[{index}].{name}"
                ) from None
        raise
    if len(event) > MAX_EVENT_BYTES:
        raise RequestError(
            422,
            "too_large",
            f"the event is larger than {MAX_EVENT_BYTES} bytes",
            path=f"$[{index}]",
        )
    return event


def _check_types(records: Sequence[Mapping[str, Any]], table: Table) -> None:
    """Refuse the first event, and of it the first column, that the contract's types do not take."""
    first: tuple[int, str, str] | None = None
    for name, dtype in table.columns.items():
        values = [record[name] for record in records]
        is_nullable = table.schema.columns[name].nullable
        fits = _surely_fits(dtype)
        # Most bodies have few events, and for these a column as polars has it costs the most.
        if all(is_nullable if value is None else fits(value) for value in values):
            continue
        converted = convert(values, dtype, zone=table.zone)
        faults = {"wrong_type": converted.failed}
        if not is_nullable:
            faults["null"] = converted.values.is_null() & ~converted.failed
        for code, failed in faults.items():
            place = failed.arg_max() if failed.any() else None
            if place is not None and (first is None or place < first[0]):
                first = (place, name, code)
    if first is None:
        return
    place, name, code = first
    path = f"$[{place}].{name}"
    if code == "null":
        raise RequestError(422, code, f"{name} is null, and must have a value", path=path)
    value = records[place][name]
    text = f"{name} is {shown(str(value))}, not {_wanted(table, name)}"
    raise RequestError(422, code, text, path=path)


def _surely_fits(dtype: pl.DataType) -> Callable[[Any], bool]:
    """Give a quick look at a value; where it says no, the conversion that a table uses decides."""
    if dtype.is_integer():
        limit = 1 << (int(str(dtype).removeprefix("Int")) - 1)
        return lambda value: type(value) is int and -limit <= value < limit
    if dtype.is_float():
        return lambda value: type(value) is float
    if dtype == EVENT_TIME:
        return _is_moment
    kind = {pl.Boolean(): bool, pl.String(): str}.get(dtype)
    return lambda value: type(value) is kind


def _is_moment(value: Any) -> bool:
    if type(value) is not str or not _MOMENT.fullmatch(value):
        return False
    try:
        return 1 < datetime.fromisoformat(value).year < 9999
    except ValueError:
        return False


def _wanted(table: Table, name: str) -> str:
    dtype = table.columns[name]
    if dtype.is_integer():
        return f"an integer ({dtype})"
    if dtype.is_float():
        return "a number"
    if dtype.is_temporal():
        return "a time or date in ISO 8601, as text"
    return "true or false" if str(dtype) == "Boolean" else "a string"
