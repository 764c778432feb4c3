"""MLflow's scoring protocol: rows as a DataFrame in JSON, a list of scores back.

What is taken of it: `dataframe_records`, `dataframe_split`, and `inputs` by column. mlflow.org:
"Deploy MLflow Model as a Local Inference Server".
"""

from typing import Any

import orjson

from penstock.errors import RequestError
from penstock.serving import http
from penstock.serving.requests import RequestParser, Row, load, shown, wrong_type

_SHAPES = ("dataframe_split", "dataframe_records", "inputs")


def read(parser: RequestParser, body: bytes) -> list[Row]:
    """Read a body's rows.

    Raises:
        RequestError: 400 or 422, with the path of the offending part.
    """
    document = load(body)
    if type(document) is not dict:
        raise wrong_type(document, "an object", "$")
    if len(document) != 1 or next(iter(document)) not in _SHAPES:
        found = ", ".join(shown(key) for key in list(document)[:3]) or "nothing"
        raise RequestError(
            422, "unknown_key", f"the body has {found}; it must have one of {', '.join(_SHAPES)}"
        )
    ((shape, given),) = document.items()
    path = f"$.{shape}"
    if shape == "dataframe_records":
        return parser.rows_of(given, path=path)
    if type(given) is not dict:
        raise wrong_type(given, "an object", path)
    if shape == "inputs":
        return parser.rows_of(_rows_of_columns(given, path), path=path)
    return parser.rows_of(_rows_of_split(given, path), path=f"{path}.data")


def answer(scores: list[float]) -> http.Answer:
    """Write the scores as MLflow does."""
    return http.Answer(status=200, body=orjson.dumps({"predictions": scores}))


def _rows_of_split(given: dict[str, Any], path: str) -> list[dict[str, Any]]:
    # `index` is what pandas writes beside; it says nothing that a model could know.
    for key in given:
        if key not in ("columns", "data", "index"):
            raise RequestError(422, "unknown_key", f"{shown(key)} is no key", path=path)
    columns, data = given.get("columns"), given.get("data")
    if type(columns) is not list or not all(type(name) is str for name in columns):
        raise wrong_type(columns, "an array of names", f"{path}.columns")
    if len(set(columns)) < len(columns):
        raise RequestError(422, "duplicate_key", "a column is there twice", path=f"{path}.columns")
    if type(data) is not list:
        raise wrong_type(data, "an array of rows", f"{path}.data")
    for place, values in enumerate(data):
        if type(values) is not list or len(values) != len(columns):
            raise RequestError(
                422,
                "wrong_shape",
                f"the row is no array of {len(columns)} values",
                path=f"{path}.data[{place}]",
            )
    return [dict(zip(columns, values, strict=True)) for values in data]


def _rows_of_columns(given: dict[str, Any], path: str) -> list[dict[str, Any]]:
    for name, values in given.items():
        if type(values) is not list:
            raise wrong_type(values, "an array of values", f"{path}.{name[:60]!a}")
    if len({len(values) for values in given.values()}) > 1:
        raise RequestError(422, "wrong_shape", "the columns are of different lengths", path=path)
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]
