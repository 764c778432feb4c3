import json
from datetime import datetime

import jsonschema
import orjson
from hypothesis import given
from hypothesis import strategies as st

from penstock.registry.package import RequestField, Signature
from penstock.serving import http
from penstock.serving.openapi import document
from penstock.serving.protocols import Protocols
from penstock.serving.requests import RequestParser

TYPES = ("int64", "float64", "bool", "string", "timestamp")
FIELDS = tuple(RequestField(name=dtype.upper(), dtype=dtype) for dtype in TYPES)
SIGNATURE = Signature(
    model="spills",
    estimator="logistic_regression",
    use_case="dam",
    feature_service="dam_v1",
    feature_names=("amount", "risk_7d"),
    request_fields=FIELDS,
    label="SPILLED",
    threshold=0.5,
)
ROUTE = "/v1/models/spills"
PARSER = RequestParser(
    FIELDS, max_rows=3, max_body_bytes=1 << 20, feature_names=SIGNATURE.feature_names
)
ROWS = st.fixed_dictionaries(
    {
        "INT64": st.integers(-(1 << 63), (1 << 63) - 1),
        "FLOAT64": st.floats(allow_nan=False, allow_infinity=False),
        "BOOL": st.booleans(),
        "STRING": st.text(st.characters(exclude_categories=("Cs",))),
        "TIMESTAMP": st.datetimes(datetime(1990, 1, 1)).map(lambda moment: f"{moment:%FT%TZ}"),
    },
    optional={"risk_7d": st.none() | st.floats(allow_nan=False, allow_infinity=False)},
)


def described(signature: Signature = SIGNATURE) -> dict:
    return document(route=ROUTE, version=2, signature=signature, max_rows=3)


def schema(name: str) -> jsonschema.Draft202012Validator:
    parts = described()["components"]
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": parts}
    )


def test_each_path_of_the_document_is_one_that_answers():
    protocols = Protocols(model="spills", version=2, digest="d", signature=SIGNATURE, parser=PARSER)
    paths = described()["paths"]
    # Answered by the task routes; the journey test asks them.
    tasks = {path for path in paths if path.endswith("/predict-async") or "/tasks/" in path}
    assert len(tasks) == 3
    for path, methods in paths.items():
        if path in tasks:
            continue
        assert path in (protocols.posts if "post" in methods else protocols.pages)


def test_explanations_stand_in_it_where_the_model_gives_them():
    policy = SIGNATURE.serving.model_copy(update={"explanations": True})
    paths = described(SIGNATURE.model_copy(update={"serving": policy}))["paths"]
    assert {path for path in paths if path not in described()["paths"]} == {
        f"{ROUTE}/explain",
        f"{ROUTE}/versions/2/explain",
    }


def test_the_model_gives_the_document_away():
    protocols = Protocols(model="spills", version=2, digest="d", signature=SIGNATURE, parser=PARSER)
    page = protocols.pages[f"{ROUTE}/openapi.json"]()
    rows = described()["components"]["schemas"]["Row"]
    assert isinstance(page, http.Answer)
    assert orjson.loads(page.body)["components"]["schemas"]["Row"] == rows


def test_a_model_without_a_threshold_answers_no_label():
    bare = SIGNATURE.model_copy(update={"threshold": None})
    assert "label" in described()["components"]["schemas"]["Prediction"]["properties"]
    assert "label" not in described(bare)["components"]["schemas"]["Prediction"]["properties"]


@given(st.lists(ROWS, min_size=1, max_size=3))
def test_what_the_document_allows_the_parser_takes(rows):
    body = {"rows": rows}
    schema("Rows").validate(body)
    assert len(PARSER.parse(json.dumps(body).encode())) == len(rows)


@given(ROWS, st.sampled_from([field.name for field in FIELDS]), st.sampled_from([None, [], {}]))
def test_what_the_parser_refuses_the_document_does_not_allow(row, field, value):
    for body in ({"rows": [row | {field: value}]}, {"rows": []}, {"rows": [row] * 4}, {}):
        assert not schema("Rows").is_valid(body)
