import json
import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import RequestError
from penstock.registry.package import RequestField
from penstock.serving import open_inference
from penstock.serving.open_inference import InferReader, answer, metadata
from penstock.serving.requests import RequestParser

FIELDS = tuple(
    RequestField(name=name, dtype=dtype)
    for name, dtype in (
        ("STATION", "int64"),
        ("LEVEL", "float64"),
        ("OPEN", "bool"),
        ("BY", "string"),
    )
)
PARSER = RequestParser(FIELDS, max_rows=100, max_body_bytes=1 << 20)
READER = InferReader(FIELDS, PARSER, outputs=("score", "label"))
DATA = {"STATION": [1, 2], "LEVEL": [0.5, 2.0], "OPEN": [True, False], "BY": ["ada", "bén"]}
TYPES = {"STATION": "INT64", "LEVEL": "FP64", "OPEN": "BOOL", "BY": "BYTES"}
ROWS = [
    {"STATION": 1, "LEVEL": 0.5, "OPEN": True, "BY": "ada"},
    {"STATION": 2, "LEVEL": 2.0, "OPEN": False, "BY": "bén"},
]


def tensor(name: str, /, **changes: object) -> dict:
    values = DATA[name]
    made = {"name": name, "shape": [len(values)], "datatype": TYPES[name], "data": values}
    return {key: value for key, value in {**made, **changes}.items() if value is not None}


def body_of(*tensors: dict, **more: object) -> bytes:
    return json.dumps({"inputs": list(tensors) or [tensor(name) for name in DATA], **more}).encode()


def packed(name: str) -> bytes:
    if TYPES[name] == "BYTES":
        return b"".join(struct.pack("<I", len(t.encode())) + t.encode() for t in DATA[name])
    dtype = {"INT64": "<i8", "FP64": "<f8", "BOOL": "u1"}[TYPES[name]]
    return np.array(DATA[name]).astype(dtype).tobytes()


def in_binary(parts: dict[str, bytes], **changes: dict) -> tuple[list, bytes]:
    """A request whose tensors lie behind the JSON, and its headers."""
    tensors = [
        tensor(name, data=None, parameters={"binary_data_size": len(part)}, **changes.get(name, {}))
        for name, part in parts.items()
    ]
    head = body_of(*tensors)
    headers = [(b"inference-header-content-length", b"%d" % len(head))]
    return headers, head + b"".join(parts.values())


def refusal(body: bytes, headers: list | None = None) -> RequestError:
    with pytest.raises(RequestError) as caught:
        READER.read(headers or [], body)
    return caught.value


class TestRead:
    def test_tensors_in_json_are_the_rows_of_the_plain_protocol(self):
        request = READER.read([], body_of(id="7"))
        assert request.rows == ROWS
        assert (request.id, request.outputs, request.in_binary) == ("7", None, False)

    def test_a_tensor_may_be_a_column_of_one(self):
        column = tensor("STATION", shape=[2, 1], data=[[1], [2]])
        rest = [tensor(name) for name in DATA if name != "STATION"]
        assert READER.read([], body_of(column, *rest)).rows == ROWS

    def test_binary_tensors_lie_behind_the_json_in_their_order(self):
        headers, body = in_binary({name: packed(name) for name in DATA})
        assert READER.read(headers, body).rows == ROWS

    def test_json_and_binary_may_be_mixed(self):
        part = packed("LEVEL")
        level = tensor("LEVEL", data=None, parameters={"binary_data_size": len(part)})
        head = body_of(tensor("STATION"), level, tensor("OPEN"), tensor("BY"))
        headers = [(b"inference-header-content-length", b"%d" % len(head))]
        assert READER.read(headers, head + part).rows == ROWS

    def test_the_outputs_that_are_wanted(self):
        outputs = [{"name": "score", "parameters": {"binary_data": True}}, {"name": "label"}]
        request = READER.read([], body_of(outputs=outputs))
        assert request.outputs == {"score": True, "label": False}


class TestRefusals:
    @pytest.mark.parametrize(
        ("change", "code", "path"),
        [
            ({"name": "TIDE"}, "unknown_key", "$.inputs[0].name"),
            ({"name": 5}, "unknown_key", "$.inputs[0].name"),
            ({"datatype": "INT32"}, "wrong_type", "$.inputs[0].datatype"),
            ({"datatype": None}, "wrong_type", "$.inputs[0].datatype"),
            ({"shape": [2, 2]}, "wrong_shape", "$.inputs[0].shape"),
            ({"shape": []}, "wrong_shape", "$.inputs[0].shape"),
            ({"shape": [-1]}, "wrong_shape", "$.inputs[0].shape"),
            ({"shape": [True]}, "wrong_shape", "$.inputs[0].shape"),
            ({"shape": [3]}, "wrong_shape", "$.inputs[0].data"),
            ({"data": None}, "wrong_type", "$.inputs[0].data"),
            ({"data": ["1", 2]}, "wrong_type", "$.inputs[0].STATION"),
            ({"data": [1 << 70, 2]}, "out_of_range", "$.inputs[0].STATION"),
            ({"parameters": 1}, "wrong_type", "$.inputs[0].parameters"),
            ({"extra": 1}, "unknown_key", "$.inputs[0]"),
        ],
    )
    def test_a_tensor_that_does_not_fit(self, change, code, path):
        rest = [tensor(name) for name in DATA if name != "STATION"]
        error = refusal(body_of(tensor("STATION", **change), *rest))
        assert (error.status, error.code, error.path) == (422, code, path)

    def test_an_input_that_is_missing_or_there_twice(self):
        assert refusal(body_of(tensor("STATION"))).code == "missing_field"
        assert refusal(body_of(tensor("STATION"), tensor("STATION"))).code == "duplicate_key"

    def test_inputs_of_different_lengths(self):
        short = tensor("LEVEL", shape=[1], data=[0.5])
        rest = [tensor(name) for name in DATA if name != "LEVEL"]
        assert refusal(body_of(short, *rest)).code == "wrong_shape"

    @pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"inputs":{}}', b'{"inputs":[],"id":1}'])
    def test_a_body_that_is_no_request(self, body):
        assert refusal(body).status in (400, 422)

    def test_no_rows_and_too_many(self):
        none = [tensor(name, shape=[0], data=[]) for name in DATA]
        assert refusal(body_of(*none)).code == "no_rows"
        many = [tensor(name, shape=[200], data=DATA[name] * 100) for name in DATA]
        assert refusal(body_of(*many)).code == "too_many_rows"

    def test_an_output_that_there_is_not(self):
        assert refusal(body_of(outputs=[{"name": "odds"}])).path == "$.outputs[0].name"

    @pytest.mark.parametrize("length", [b"x", b"-1", b"999999", b"", b"9" * 30])
    def test_a_length_that_is_none(self, length):
        headers = [(b"inference-header-content-length", length)]
        assert refusal(body_of(), headers).code == "unreadable"

    @pytest.mark.parametrize(
        ("name", "part", "code"),
        [
            ("STATION", b"\0" * 15, "wrong_shape"),
            ("OPEN", b"\1\2", "wrong_type"),
            ("LEVEL", np.array([0.5, np.nan]).tobytes(), "out_of_range"),
            ("BY", struct.pack("<I", 9) + b"ada", "wrong_shape"),
            ("BY", b"\1\0", "wrong_shape"),
            ("BY", (struct.pack("<I", 1) + b"\xff") * 2, "wrong_type"),
            ("BY", struct.pack("<I", 1) + b"a", "wrong_shape"),
        ],
    )
    def test_a_binary_tensor_that_does_not_fit(self, name, part, code):
        headers, body = in_binary({**{each: packed(each) for each in DATA}, name: part})
        assert refusal(body, headers).code == code

    def test_bytes_that_belong_to_nothing(self):
        headers, body = in_binary({name: packed(name) for name in DATA})
        assert refusal(body + b"x", headers).code == "unreadable"

    @given(st.binary(max_size=200), st.integers(0, 250))
    def test_whatever_comes_is_rows_or_a_refusal(self, tail, length):
        headers, body = in_binary({name: packed(name) for name in DATA})
        headers = [(b"inference-header-content-length", b"%d" % length)]
        with pytest.raises(RequestError):
            READER.read(headers, tail + body)


TENSORS = {"score": np.array([0.25, 0.5]), "label": np.array([0, 1]), "by": ["a", "bé"]}


class TestAnswer:
    def ask(self, **more: object) -> open_inference.InferRequest:
        return READER.read([], body_of(**more))

    def test_all_outputs_in_json_where_nobody_said_otherwise(self):
        written = answer(self.ask(id="7"), TENSORS, model="spills", version=3)
        document = json.loads(written.body)
        assert (document["model_name"], document["model_version"]) == ("spills", "3")
        assert document["id"] == "7"
        assert [(o["name"], o["datatype"], o["shape"], o["data"]) for o in document["outputs"]] == [
            ("score", "FP64", [2], [0.25, 0.5]),
            ("label", "INT64", [2], [0, 1]),
            ("by", "BYTES", [2], ["a", "bé"]),
        ]

    def test_binary_outputs_lie_behind_the_json(self):
        request = self.ask(parameters={"binary_data_output": True})
        written = answer(request, TENSORS, model="spills", version=3)
        ((name, length),) = written.headers
        assert name == b"inference-header-content-length"
        assert written.content_type == b"application/octet-stream"
        document, tail = json.loads(written.body[: int(length)]), written.body[int(length) :]
        sizes = [output["parameters"]["binary_data_size"] for output in document["outputs"]]
        assert sum(sizes) == len(tail)
        assert np.frombuffer(tail[:16]).tolist() == [0.25, 0.5]
        assert tail[32:] == b"\1\0\0\0a\3\0\0\0b\xc3\xa9"

    def test_only_what_was_asked_for_and_in_that_order(self):
        request = self.ask(outputs=[{"name": "label"}, {"name": "score"}])
        written = answer(request, TENSORS, model="spills", version=3)
        assert [each["name"] for each in json.loads(written.body)["outputs"]] == ["label", "score"]


def test_the_metadata_names_every_field_and_output():
    described = json.loads(metadata("spills", 3, FIELDS, outputs={"score": "FP64"}).body)
    assert [(each["name"], each["datatype"]) for each in described["inputs"]] == list(TYPES.items())
    assert described["outputs"] == [{"name": "score", "datatype": "FP64", "shape": [-1]}]
    assert described["versions"] == ["3"]
