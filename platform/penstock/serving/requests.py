"""From the bytes of a predict request to typed rows, or to the one error that says what is wrong.

Strict on purpose: a number is a number, a key stands once, nothing is guessed. Every refusal is a
`RequestError` with its status: 400 where the body is no JSON text, 413 where it is too large, 422
where the JSON does not say rows of this model. Pure: no I/O here.
"""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Protocol

from penstock.errors import RequestError

Row = dict[str, Any]
"""One row by field: int, float, bool, str, or an aware datetime in UTC."""

_INT64_MIN, _INT64_MAX = -(1 << 63), (1 << 63) - 1
_TIMESTAMP = re.compile(
    r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d{1,6})?)?([Zz]|[+-]\d\d:\d\d)?", re.ASCII
)
_MAX_SHOWN = 60


class FieldLike(Protocol):
    """What a field of the request is: its name and one of the five types."""

    @property
    def name(self) -> str:
        """The key in each row."""

    @property
    def dtype(self) -> str:
        """int64, float64, bool, string or timestamp."""


class _DuplicateKey:
    """Stands where an object had a key twice."""

    def __init__(self, key: str) -> None:
        self.key = key


class _NotJson:
    """Stands where Python's parser takes NaN, Infinity or -Infinity, which JSON has not."""

    def __init__(self, name: str) -> None:
        self.name = name


class RequestParser:
    """Turns predict bodies into rows of the declared fields."""

    def __init__(
        self,
        fields: Sequence[FieldLike],
        *,
        max_rows: int,
        max_body_bytes: int,
        feature_names: Collection[str] = (),
    ) -> None:
        """Prepare for one model's fields.

        Args:
            fields: what every row must have.
            max_rows: more rows in one request are refused.
            feature_names: what a row may have beside: a number, or null for none.
            max_body_bytes: a longer body is refused unread.

        Raises:
            ValueError: a field has a type that no request can carry.
        """
        unknown = {field.dtype for field in fields} - _CONVERTERS.keys()
        if unknown:
            raise ValueError(f"request fields of unknown type: {', '.join(sorted(unknown))}")
        self._fields = tuple((field.name, _CONVERTERS[field.dtype]) for field in fields)
        self._names = {field.name for field in fields}
        self._features = frozenset(feature_names) - self._names
        self._max_rows = max_rows
        self._max_body_bytes = max_body_bytes

    def parse(self, body: bytes) -> list[Row]:
        """Read `{"rows": [{field: value, …}, …]}`.

        Raises:
            RequestError: 400, 413 or 422, with the path of the offending part.
        """
        if len(body) > self._max_body_bytes:
            raise too_large(self._max_body_bytes)
        return self._rows_of(load(body))

    def _rows_of(self, document: Any) -> list[Row]:
        if type(document) is not dict:
            raise wrong_type(document, 'an object {"rows": [...]}', "$")
        if len(document) != 1 or "rows" not in document:
            for key in document:
                if key != "rows":
                    raise RequestError(
                        422, "unknown_key", f"{shown(key)} is no key; only rows is", path="$"
                    )
            raise RequestError(422, "missing_field", "the key rows is missing", path="$")
        return self.rows_of(document["rows"])

    def rows_of(self, rows: Any, *, path: str = "$.rows") -> list[Row]:
        """Check and type rows.

        Args:
            rows: what a body has in their place.
            path: where that stands in the body.

        Raises:
            RequestError: 422, with the path of the offending part.
        """
        if type(rows) is not list:
            raise wrong_type(rows, "an array of rows", path)
        if not rows:
            raise RequestError(422, "no_rows", "there is no row; send at least one", path=path)
        if len(rows) > self._max_rows:
            raise RequestError(
                422,
                "too_many_rows",
                f"{len(rows)} rows in one request; at most {self._max_rows} are taken",
                path=path,
            )
        return [self._row_of(row, path, index) for index, row in enumerate(rows)]

    def _row_of(self, row: Any, path: str, index: int) -> Row:
        if type(row) is not dict:
            raise wrong_type(row, "an object", f"{path}[{index}]")
        typed: Row = {}
        try:
            for name, convert in self._fields:
                typed[name] = convert(row[name])
        except KeyError:
            raise self._wrong_keys(row, f"{path}[{index}]") from None
        except _ValueRefusedError as refused:
            raise RequestError(
                422, refused.code, f"{name} {refused.what}", path=f"{path}[{index}].{name}"
            ) from None
        if len(row) != len(typed):
            for name in row.keys() - self._names:
                typed[name] = self._feature_of(row, name, f"{path}[{index}]")
        return typed

    def _feature_of(self, row: Mapping[str, Any], name: str, path: str) -> float:
        """Read a feature that the caller gives itself; NaN: it says that there is none."""
        if name not in self._features:
            raise self._wrong_keys(row, path)
        value = row[name]
        return math.nan if value is None else typed(value, "float64", f"{path}.{name}")

    def _wrong_keys(self, row: Mapping[str, Any], path: str) -> RequestError:
        extra = next((k for k in row if k not in self._names and k not in self._features), None)
        if extra is not None:
            allowed = ", ".join(name for name, _ in self._fields)
            beside = ", and the model's features" if self._features else ""
            return RequestError(
                422,
                "unknown_key",
                f"{shown(extra)} is no field; allowed: {allowed}{beside}",
                path=path,
            )
        missing = next(name for name, _ in self._fields if name not in row)
        return RequestError(422, "missing_field", f"the field {missing} is missing", path=path)


def typed(value: Any, dtype: str, path: str) -> Any:
    """Read one value of a type that a field can have.

    Raises:
        RequestError: 422, with that path.
    """
    try:
        return _CONVERTERS[dtype](value)
    except _ValueRefusedError as refused:
        name = path.removeprefix("$.")
        raise RequestError(422, refused.code, f"{name} {refused.what}", path=path) from None


def load(body: bytes) -> Any:
    """Read JSON text strictly: what JSON has not, or a key given twice, leaves a stand-in.

    Raises:
        RequestError: 400 where it is no JSON in UTF-8, 422 where a number is too long.
    """
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise unreadable(f"the body is not UTF-8 at byte {error.start}") from None
    try:
        return _DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise unreadable(
            f"the body is not JSON: {error.msg}, line {error.lineno} column {error.colno}"
        ) from None
    except RecursionError:
        raise unreadable("the body is nested too deeply") from None
    except ValueError:
        # Python refuses to convert integers of thousands of digits.
        raise RequestError(422, "out_of_range", "a number has too many digits", path="$") from None


def too_large(max_body_bytes: int) -> RequestError:
    """Build the refusal of a body beyond the limit."""
    return RequestError(413, "too_large", f"the body is larger than {max_body_bytes} bytes")


class _ValueRefusedError(Exception):
    def __init__(self, code: str, what: str) -> None:
        super().__init__(code, what)
        self.code = code
        self.what = what


def _int64(value: Any) -> int:
    if type(value) is not int:
        raise _refused(value, "an integer")
    if not _INT64_MIN <= value <= _INT64_MAX:
        raise _ValueRefusedError("out_of_range", "is an integer beyond 64 bits")
    return value


def _float64(value: Any) -> float:
    if type(value) is float:
        if not math.isfinite(value):
            raise _ValueRefusedError("out_of_range", "is a number beyond 64-bit floats")
        return value
    if type(value) is int:
        return float(_int64(value))
    raise _refused(value, "a number")


def _bool(value: Any) -> bool:
    if type(value) is not bool:
        raise _refused(value, "true or false")
    return value


def _string(value: Any) -> str:
    if type(value) is not str:
        raise _refused(value, "a string")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError:
            raise _ValueRefusedError("wrong_type", "holds half a surrogate pair") from None
    return value


def _timestamp(value: Any) -> datetime:
    if type(value) is not str:
        raise _refused(value, "an ISO 8601 time, as text")
    if not _TIMESTAMP.fullmatch(value):
        raise _ValueRefusedError(
            "bad_timestamp", f"is {shown(value)}, not an ISO 8601 time like 2018-08-08T10:00:00Z"
        )
    try:
        moment = datetime.fromisoformat(value.upper())
        # A time without a zone is read as UTC, as the tables store it.
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise _ValueRefusedError(
            "bad_timestamp", f"is {shown(value)}, which no calendar has"
        ) from None


_CONVERTERS: Mapping[str, Callable[[Any], Any]] = {
    "int64": _int64,
    "float64": _float64,
    "bool": _bool,
    "string": _string,
    "timestamp": _timestamp,
}


def _object_of_unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any] | _DuplicateKey:
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    seen: set[str] = set()
    for key, _ in pairs:
        if key in seen:
            return _DuplicateKey(key)
        seen.add(key)
    raise AssertionError("unreachable: a shorter dict has a key twice")


_DECODER = json.JSONDecoder(object_pairs_hook=_object_of_unique_keys, parse_constant=_NotJson)


def _refused(value: Any, wanted: str) -> _ValueRefusedError:
    code, what = _fault_of(value, wanted)
    return _ValueRefusedError(code, what)


def wrong_type(value: Any, wanted: str, path: str) -> RequestError:
    """Build the refusal of a value, or of a stand-in, that is not of the wanted kind."""
    code, what = _fault_of(value, wanted)
    where = "the body" if path == "$" else path.removeprefix("$.")
    return RequestError(422, code, f"{where} {what}", path=path)


def _fault_of(value: Any, wanted: str) -> tuple[str, str]:
    if isinstance(value, _DuplicateKey):
        return "duplicate_key", f"has the key {shown(value.key)} twice"
    if isinstance(value, _NotJson):
        return "not_finite", f"is {value.name}, which is no JSON number"
    return "wrong_type", f"is {_kind_of(value)}, not {wanted}"


def _kind_of(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return f"the string {shown(value)}"
    if isinstance(value, (int, float)):
        return "a number"
    return "an array" if isinstance(value, list) else "an object"


def shown(text: str) -> str:
    """Quote what a caller sent: short, and in ASCII, so that every answer can be encoded."""
    return ascii(text if len(text) <= _MAX_SHOWN else text[:_MAX_SHOWN] + "…")


def unreadable(message: str) -> RequestError:
    """Build the refusal of a body that is no JSON text."""
    return RequestError(400, "unreadable", message)
