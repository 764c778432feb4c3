"""The lines by which a running job tells the command that submitted it what happens.

A job's only sure way out is its log, so each message is one line of it: a mark, then JSON.
"""

import json
from collections.abc import Mapping
from typing import Any, Literal

import penstock.errors
from penstock.errors import PenstockError
from penstock.records import Record

_MARK = "::penstock:: "


class ProgressMarker(Record):
    """How much of a step is done."""

    kind: Literal["progress"] = "progress"
    step: str
    done: int
    total: int | None
    unit: str


class TableMarker(Record):
    """What the job has found so far, the best row first; each replaces the one before it."""

    kind: Literal["table"] = "table"
    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


class ResultMarker(Record):
    """What the job leaves."""

    kind: Literal["result"] = "result"
    result: dict[str, Any]


class ErrorMarker(Record):
    """The error on purpose that ended the job."""

    kind: Literal["error"] = "error"
    error: str
    found: str
    allowed: str | None
    next_step: str | None
    exit_code: int


Marker = ProgressMarker | TableMarker | ResultMarker | ErrorMarker
_KINDS: Mapping[
    str, type[ProgressMarker] | type[TableMarker] | type[ResultMarker] | type[ErrorMarker]
] = {
    "progress": ProgressMarker,
    "table": TableMarker,
    "result": ResultMarker,
    "error": ErrorMarker,
}


def write(marker: Marker) -> str:
    """Put a marker into one line."""
    return _MARK + marker.model_dump_json()


def read(line: str) -> Marker | None:
    """Find the marker in a line of a job's log; None where it is a line like any other.

    Anybody may print anything, so what only looks like a marker is an ordinary line.
    """
    if not line.startswith(_MARK):
        return None
    try:
        payload = json.loads(line[len(_MARK) :])
        return _KINDS[payload["kind"]].model_validate(payload)
    except (ValueError, KeyError, TypeError):
        return None


def from_error(error: PenstockError) -> ErrorMarker:
    """Describe an error to the other side."""
    return ErrorMarker(
        error=type(error).__name__,
        found=error.found,
        allowed=error.allowed,
        next_step=error.next_step,
        exit_code=error.exit_code,
    )


def to_error(marker: ErrorMarker) -> PenstockError:
    """Build the job's own error again: the same kind where we know it, the same words."""
    kind = getattr(penstock.errors, marker.error, None)
    if not (isinstance(kind, type) and issubclass(kind, PenstockError)):
        kind = PenstockError
    if kind.__init__ is not PenstockError.__init__:
        # These kinds carry more than the three parts, which the line does not have.
        kind = PenstockError
    error = kind(marker.found, allowed=marker.allowed, next_step=marker.next_step)
    error.exit_code = marker.exit_code
    return error
