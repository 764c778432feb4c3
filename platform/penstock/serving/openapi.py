"""The OpenAPI document of a model version: what its paths take, and all that they answer."""

from collections.abc import Sequence
from typing import Any

from penstock.registry.package import Signature
from penstock.serving.explanations import MAX_ROWS
from penstock.serving.task_limits import MAX_TASK_ROWS

_INT64 = {"type": "integer", "minimum": -(1 << 63), "maximum": (1 << 63) - 1}
_TYPES: dict[str, dict[str, Any]] = {
    "int64": {**_INT64, "format": "int64"},
    "float64": {"type": "number", "format": "double"},
    "bool": {"type": "boolean"},
    "string": {"type": "string"},
    "timestamp": {
        "type": "string",
        "format": "date-time",
        "description": "ISO 8601; without a zone it is UTC.",
    },
}
_REFUSALS = {
    "400": "No JSON in UTF-8.",
    "401": "A key is asked for, and this is none that is valid.",
    "403": "The key does not open this, or a page of another server sends the request.",
    "404": "No such task, or its result was removed.",
    "405": "Another method; `Allow` says which.",
    "409": "The task is being worked on.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large.",
    "415": "Not `application/json`, or encoded.",
    "421": "Another host name.",
    "422": "JSON, and no request of this model; `path` says where.",
    "429": "Beyond the rate of the key.",
    "503": "Too much in flight, or the model or its features can't be had; try again.",
    "504": "No answer within `X-Timeout-Ms`.",
}
_OF_READING = ("401", "403", "405", "421", "429", "503")
_OF_TASKS = ("404", "409")


def document(*, route: str, version: int, signature: Signature, max_rows: int) -> dict[str, Any]:
    """Write the document.

    Args:
        route: of the model: `/v1/models/<name>`.
        version: the one that answers.
        signature: its fields and its threshold.
        max_rows: of one request.
    """
    schemas = {
        "Refusal": _object(
            {"code": _text(), "message": _text(), "path": _text("Where in the body the fault is.")}
        ),
        "Row": _row(signature),
        "Rows": _object({"rows": _array("Row", max_rows)}),
        "Records": _object({"dataframe_records": _array("Row", max_rows)}),
        "Prediction": _prediction(signature),
        "Predictions": _object(
            {
                "model": {"const": signature.model},
                "version": {"const": version},
                "predictions": _array("Prediction", max_rows),
            }
        ),
        "TaskRows": _object({"rows": _array("Row", MAX_TASK_ROWS)}),
        **_task_schemas(signature.model),
        "Scores": _object({"predictions": {"type": "array", "items": {"type": "number"}}}),
    }
    paths: dict[str, Any] = {
        route: {"get": _reading("What the model takes and gives.", "describe")},
        f"{route}/openapi.json": {"get": _reading("This document.", "openapi")},
    }
    for base, suffix in ((route, ""), (f"{route}/versions/{version}", "_version")):
        paths[f"{base}/predict"] = {
            "post": _asking("Score rows.", f"predict{suffix}", "Rows", "Predictions")
        }
        paths[f"{base}/invocations"] = {
            "post": _asking("Score rows, as MLflow asks.", f"invocations{suffix}", None, "Scores")
        }
        paths[f"{base}/predict-async"] = {
            "post": _asking(
                "Take rows, to be scored in their turn.",
                f"predict_async{suffix}",
                "TaskRows",
                "Accepted",
                status="202",
            )
        }
        if signature.serving.explanations:
            paths[f"{base}/explain"] = {
                "post": _asking(
                    "Explain the scores of rows.", f"explain{suffix}", "FewRows", "Explanations"
                )
            }
    paths[f"{route}/tasks/{{task_id}}"] = _task_operations()
    if signature.serving.explanations:
        schemas |= _explained(signature, version)
    return {
        "openapi": "3.1.0",
        "info": {"title": f"{signature.model}, served by Penstock", "version": str(version)},
        "paths": paths,
        "components": {
            "schemas": schemas,
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _row(signature: Signature) -> dict[str, Any]:
    fields = {field.name: _TYPES[field.dtype] for field in signature.request_fields}
    row = _object(fields)
    given = {"type": ["number", "null"], "description": "In place of what the store has."}
    for name in signature.feature_names:
        row["properties"].setdefault(name, given)
    return row


def _prediction(signature: Signature) -> dict[str, Any]:
    names = {"type": "string", "enum": list(signature.feature_names)}
    parts: dict[str, Any] = {
        "prediction_id": _text("Follows from version, X-Request-Id and body."),
        "score": {"type": "number"},
        "missing": {"type": "array", "items": names},
    }
    if signature.threshold is not None:
        parts["label"] = {"type": "integer", "enum": [0, 1]}
    return _object(parts)


def _explained(signature: Signature, version: int) -> dict[str, Any]:
    names = {"type": "string", "enum": list(signature.feature_names)}
    number = {"type": "number"}
    return {
        "FewRows": _object({"rows": _array("Row", MAX_ROWS)}),
        "Contribution": _object(
            {
                "feature": names,
                "value": {"type": ["number", "null"], "description": "Null: it is missing."},
                "contribution": number,
            }
        ),
        "Explanation": _object(
            {
                "score": number,
                "base_score": {**number, "description": "Of the background rows, on average."},
                "contributions": _array("Contribution", len(signature.feature_names)),
                "missing": {"type": "array", "items": names},
                "text": _text("The same in words."),
            }
        ),
        "Explanations": _object(
            {
                "model": {"const": signature.model},
                "version": {"const": version},
                "is_exact": {"type": "boolean"},
                "explanations": _array("Explanation", MAX_ROWS),
            }
        ),
    }


def _task_schemas(model: str) -> dict[str, Any]:
    status = {"type": "string", "enum": ["queued", "running", "done", "failed"]}
    moment = {"type": "string", "format": "date-time"}
    number = {"type": "integer", "minimum": 0}
    always = {
        "task_id": _text(),
        "model": {"const": model},
        "status": status,
        "num_rows": number,
        "num_rows_done": number,
        "created_at": moment,
        "deadline": moment,
    }
    at_times = {
        "reason": _text("Why it failed, or what it waits for."),
        "code": _text("Of the failure."),
        "ended_at": moment,
        "kept_until": moment,
        "result": _object(
            {
                "model": {"const": model},
                # Another one may be served by the time that the result is fetched.
                "version": {"type": "integer"},
                "predictions": {**_array("Prediction", MAX_TASK_ROWS), "description": "In order."},
            }
        ),
    }
    accepted = {"task_id": _text(), "status": status, "num_rows": number, "status_url": _text()}
    task = _object({**always, **at_times})
    return {
        "Accepted": _object(accepted),
        "Task": {**task, "required": list(always)},
        "Removed": _object({"task_id": _text(), "was": status}),
    }


def _task_operations() -> dict[str, Any]:
    name = {
        "name": "task_id",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
    }
    refusals = _refusals((*_OF_READING, *_OF_TASKS))
    return {
        "parameters": [name],
        "get": {
            "summary": "How a task stands, and its result.",
            "operationId": "task",
            "responses": {"200": _answer("Found.", "Task"), **refusals},
        },
        "delete": {
            "summary": "Forget a task that nobody works on.",
            "operationId": "remove_task",
            "responses": {"200": _answer("Removed.", "Removed"), **refusals},
        },
    }


def _asking(
    summary: str, operation: str, body: str | None, answer: str, *, status: str = "200"
) -> dict[str, Any]:
    # MLflow's shapes are several; one of them stands for all.
    content = {"application/json": {"schema": _ref(body or "Records")}}
    header = {
        "name": "X-Timeout-Ms",
        "in": "header",
        "required": False,
        "schema": {"type": "integer", "minimum": 1, "maximum": 3_600_000},
    }
    return {
        "summary": summary,
        "operationId": operation,
        "parameters": [header],
        "requestBody": {"required": True, "content": content},
        "responses": {
            status: _answer("Answered." if status == "200" else "Accepted.", answer),
            **_refusals([refusal for refusal in _REFUSALS if refusal not in _OF_TASKS]),
        },
    }


def _reading(summary: str, operation: str) -> dict[str, Any]:
    answered = {
        "description": "Answered.",
        "content": {"application/json": {"schema": {"type": "object"}}},
    }
    return {
        "summary": summary,
        "operationId": operation,
        "responses": {"200": answered, **_refusals(_OF_READING)},
    }


def _refusals(statuses: Sequence[str]) -> dict[str, Any]:
    return {status: _answer(_REFUSALS[status], "Refusal") for status in statuses}


def _answer(description: str, schema: str) -> dict[str, Any]:
    return {
        "description": description,
        "content": {"application/json": {"schema": _ref(schema)}},
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _array(of: str, max_items: int) -> dict[str, Any]:
    return {"type": "array", "items": _ref(of), "minItems": 1, "maxItems": max_items}


def _ref(name: str) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{name}"}


def _text(description: str = "") -> dict[str, str]:
    return {"type": "string", **({"description": description} if description else {})}
