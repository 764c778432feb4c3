import json

import pytest

from penstock.errors import RequestError
from penstock.registry.package import RequestField
from penstock.serving.invocations import answer, read
from penstock.serving.requests import RequestParser

FIELDS = (RequestField(name="STATION", dtype="int64"), RequestField(name="LEVEL", dtype="float64"))
PARSER = RequestParser(FIELDS, max_rows=3, max_body_bytes=1 << 20)
ROWS = [{"STATION": 1, "LEVEL": 0.5}, {"STATION": 2, "LEVEL": 2.0}]


@pytest.mark.parametrize(
    "document",
    [
        {"dataframe_records": ROWS},
        {"dataframe_split": {"columns": ["LEVEL", "STATION"], "data": [[0.5, 1], [2.0, 2]]}},
        {"dataframe_split": {"columns": ["STATION", "LEVEL"], "data": [[1, 0.5], [2, 2]], "index": [7, 8]}},
        {"inputs": {"STATION": [1, 2], "LEVEL": [0.5, 2.0]}},
    ],
)  # fmt: skip
def test_every_shape_gives_the_same_rows(document):
    assert read(PARSER, json.dumps(document).encode()) == ROWS


@pytest.mark.parametrize(
    ("document", "code"),
    [
        ([], "wrong_type"),
        ({}, "unknown_key"),
        ({"rows": ROWS}, "unknown_key"),
        ({"inputs": {}, "dataframe_records": []}, "unknown_key"),
        ({"dataframe_records": []}, "no_rows"),
        ({"dataframe_records": {"a": 1}}, "wrong_type"),
        ({"dataframe_records": ROWS * 2}, "too_many_rows"),
        ({"dataframe_split": []}, "wrong_type"),
        ({"dataframe_split": {"columns": ["STATION", "STATION"], "data": []}}, "duplicate_key"),
        ({"dataframe_split": {"columns": ["STATION", 5], "data": []}}, "wrong_type"),
        ({"dataframe_split": {"columns": ["STATION"], "data": [[1, 2]]}}, "wrong_shape"),
        ({"dataframe_split": {"columns": ["STATION"], "data": 5}}, "wrong_type"),
        ({"dataframe_split": {"columns": ["STATION"], "data": [[1]]}}, "missing_field"),
        ({"dataframe_split": {"columns": [], "data": [], "rows": []}}, "unknown_key"),
        ({"inputs": {"STATION": 1}}, "wrong_type"),
        ({"inputs": {"STATION": [1], "LEVEL": [1.0, 2.0]}}, "wrong_shape"),
        ({"inputs": {}}, "no_rows"),
        ({"inputs": {"STATION": ["1"], "LEVEL": [1.0]}}, "wrong_type"),
    ],
)
def test_what_does_not_fit_is_refused(document, code):
    with pytest.raises(RequestError) as caught:
        read(PARSER, json.dumps(document).encode())
    assert (caught.value.status, caught.value.code) == (422, code)


def test_the_answer_is_a_list_of_scores():
    assert json.loads(answer([0.25, 0.5]).body) == {"predictions": [0.25, 0.5]}
