"""From the bytes of a feedback request to the rows that are kept, or to the one refusal.

    {"model": "churn", "feedback": [
        {"prediction_id": "059648d0…-0", "truth": 1, "known_at": "2026-11-20T08:00:00Z"},
        {"entity": {"CUSTOMER": 42}, "event_time": "2026-11-01T10:00:00Z", "truth": 0}]}

As strict as a predict request: a number is a number, a key stands once, nothing is guessed. Pure:
no I/O here.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import orjson

from penstock.errors import RequestError
from penstock.serving.feedback_target import FeedbackTarget
from penstock.serving.requests import load, shown, typed, wrong_type

CLOCK_TOLERANCE = timedelta(minutes=5)
"""A truth cannot be known later than now; clocks differ by less than this."""
MAX_ID_BYTES = 200
_MAX_ENTITY_BYTES = 4_096
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_BY_ID, _BY_ENTITY = ("prediction_id", "truth"), ("entity", "event_time", "truth")
_MAY_BE = "known_at"


@dataclass(frozen=True, kw_only=True)
class FeedbackBody:
    """What a body says: of which model, and its rows without what the receiver adds."""

    target: FeedbackTarget
    rows: list[dict[str, Any]]


def read_feedback(
    body: bytes, find_target: Callable[[str], FeedbackTarget], *, now: datetime
) -> FeedbackBody:
    """Read a body.

    Args:
        body: the bytes.
        find_target: gives what is known of a model by its name; may refuse with a RequestError.
        now: when it was received.

    Returns:
        Rows by column of the log of feedback; see `feedback_collection`.

    Raises:
        RequestError: 400 or 422, with the path of the offending part, as `$.feedback[3].truth`.
    """
    document = _object(load(body), "$", ("model", "feedback"))
    target = find_target(typed(document["model"], "string", "$.model"))
    items = document["feedback"]
    if type(items) is not list:
        raise wrong_type(items, "an array", "$.feedback")
    if not items:
        raise RequestError(422, "no_rows", "there is no feedback; send some", path="$.feedback")
    latest = now + CLOCK_TOLERANCE
    rows = [_row(item, f"$.feedback[{i}]", target, latest) for i, item in enumerate(items)]
    return FeedbackBody(target=target, rows=rows)


def _object(given: Any, path: str, needed: Iterable[str], *may_be: str) -> Mapping[str, Any]:
    needed = tuple(needed)
    if type(given) is not dict:
        raise wrong_type(given, "an object", path)
    for key in given:
        if key not in (*needed, *may_be):
            allowed = ", ".join((*needed, *may_be))
            raise RequestError(
                422, "unknown_key", f"{shown(key)} is no key here; allowed: {allowed}", path=path
            )
    for key in needed:
        if key not in given:
            raise RequestError(422, "missing_field", f"the key {key} is missing", path=path)
    return given


def _row(item: Any, path: str, target: FeedbackTarget, latest: datetime) -> dict[str, Any]:
    is_by_entity = type(item) is dict and "prediction_id" not in item and "entity" in item
    given = _object(item, path, _BY_ENTITY if is_by_entity else _BY_ID, _MAY_BE)
    truth = typed(given["truth"], "float64", f"{path}.truth")
    if target.is_binary and truth not in (0, 1):
        raise RequestError(
            422, "out_of_range", f"the truth about {target.model} is 0 or 1", path=f"{path}.truth"
        )
    row: dict[str, Any] = {"truth": truth, "known_at_us": None}
    if _MAY_BE in given:
        known_at = typed(given[_MAY_BE], "timestamp", f"{path}.{_MAY_BE}")
        if known_at > latest:
            raise RequestError(
                422,
                "out_of_range",
                "known_at is in the future: nobody knows the truth yet",
                path=f"{path}.{_MAY_BE}",
            )
        row["known_at_us"] = microseconds(known_at)
    if is_by_entity:
        event_time = typed(given["event_time"], "timestamp", f"{path}.event_time")
        row["event_time_us"] = microseconds(event_time)
        row |= _entity(given["entity"], f"{path}.entity", target)
    else:
        row["prediction_id"] = _prediction_id(given["prediction_id"], f"{path}.prediction_id")
    return row


def _prediction_id(given: Any, path: str) -> str:
    prediction_id: str = typed(given, "string", path)
    if not 0 < len(prediction_id.encode()) <= MAX_ID_BYTES:
        raise RequestError(
            422, "out_of_range", f"a prediction_id has 1 to {MAX_ID_BYTES} bytes", path=path
        )
    return prediction_id


def _entity(given: Any, path: str, target: FeedbackTarget) -> dict[str, str]:
    dtypes = {field.name: field.dtype for field in target.entity_fields}
    _object(given, path, (), *dtypes)
    if not given:
        raise RequestError(
            422, "missing_field", f"no field names it; allowed: {', '.join(dtypes)}", path=path
        )
    values = {name: typed(given[name], dtypes[name], f"{path}.{name}") for name in sorted(given)}
    text = orjson.dumps(values)
    if len(text) > _MAX_ENTITY_BYTES:
        raise RequestError(
            422, "too_large", f"an entity has at most {_MAX_ENTITY_BYTES} bytes", path=path
        )
    return {"entity": text.decode(), "entity_names": orjson.dumps(list(values)).decode()}


def microseconds(moment: datetime) -> int:
    """Count from 1970 on."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
