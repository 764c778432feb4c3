import struct
from typing import Any

import grpc
import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.grpc import InferResult, service_pb2

from penstock.errors import RequestError
from penstock.registry.package import RequestField
from penstock.serving import open_inference
from penstock.serving.grpc_messages import messages
from penstock.serving.grpc_tensors import (
    infer_body,
    infer_response,
    model_metadata,
    model_path,
    refusal,
)
from penstock.serving.open_inference import InferReader, InferRequest, metadata
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
READER = InferReader(
    FIELDS,
    RequestParser(FIELDS, max_rows=100, max_body_bytes=1 << 20),
    outputs=("score", "label"),
)
TYPES = {"STATION": "INT64", "LEVEL": "FP64", "OPEN": "BOOL", "BY": "BYTES"}
CONTENTS = {
    "INT64": "int64_contents",
    "FP64": "fp64_contents",
    "BOOL": "bool_contents",
    "BYTES": "bytes_contents",
}
ROWS = [
    {"STATION": 1, "LEVEL": 0.5, "OPEN": True, "BY": "ada"},
    {"STATION": 2, "LEVEL": 2.0, "OPEN": False, "BY": "bén"},
]
a_row = st.fixed_dictionaries(
    {
        "STATION": st.integers(-(2**63), 2**63 - 1),
        "LEVEL": st.floats(allow_nan=False, allow_infinity=False),
        "OPEN": st.booleans(),
        "BY": st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
    }
)


def packed(kind: str, values: list[Any]) -> bytes:
    if kind == "BYTES":
        texts = [text.encode() for text in values]
        return b"".join(struct.pack("<I", len(text)) + text for text in texts)
    return np.array(values, {"INT64": "<i8", "FP64": "<f8", "BOOL": "u1"}[kind]).tobytes()


def request_of(rows: list[dict], *, raw: bool) -> Any:
    """Write the rows as a client does, with the public client's own messages."""
    request = service_pb2.ModelInferRequest(model_name="river")
    for name, kind in TYPES.items():
        values = [row[name] for row in rows]
        tensor = request.inputs.add(name=name, datatype=kind, shape=[len(rows)])
        if raw:
            request.raw_input_contents.append(packed(kind, values))
        else:
            written = [v.encode() if isinstance(v, str) else v for v in values]
            getattr(tensor.contents, CONTENTS[kind]).extend(written)
    return request


def read(request: Any) -> InferRequest:
    """From the wire to the rows that the replica works on."""
    body, num_head_bytes = infer_body(
        messages()["ModelInferRequest"].FromString(request.SerializeToString())
    )
    return READER.read([(b"inference-header-content-length", b"%d" % num_head_bytes)], body)


def refused(request: Any) -> tuple[str, str]:
    with pytest.raises(RequestError) as caught:
        read(request)
    error = caught.value
    code, _ = refusal(error.status, b'{"message":"m","path":"$"}')
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    return error.message, error.path


class TestRequest:
    @given(st.lists(a_row, min_size=1, max_size=20), st.booleans())
    def test_rows_come_out_as_they_went_in(self, rows: list[dict], raw: bool):
        found = read(request_of(rows, raw=raw)).rows
        assert found == rows
        # -0.0 and 0.0 are equal and not the same.
        levels = [[row["LEVEL"].hex() for row in each] for each in (found, rows)]
        assert levels[0] == levels[1]

    @pytest.mark.parametrize("raw", [True, False])
    def test_a_tensor_may_be_a_column_of_one(self, raw: bool):
        request = request_of(ROWS, raw=raw)
        for tensor in request.inputs:
            tensor.shape.append(1)
        assert read(request).rows == ROWS

    def test_id_and_outputs_are_passed_on(self):
        request = request_of(ROWS, raw=True)
        assert (read(request).id, read(request).outputs, read(request).in_binary) == (
            None,
            None,
            True,
        )
        request.id = "7"
        request.outputs.add(name="score")
        assert (read(request).id, read(request).outputs) == ("7", {"score": True})

    def test_parameters_change_nothing(self):
        request = request_of(ROWS, raw=True)
        request.parameters["binary_data_output"].bool_param = False
        request.inputs[0].parameters["binary_data_size"].int64_param = 3
        assert read(request).in_binary
        assert read(request).rows == ROWS


class TestRefusal:
    def test_a_length_that_is_not_the_shapes(self):
        request = request_of(ROWS, raw=True)
        request.raw_input_contents[1] += b"\0"
        told = "17 bytes where 2 FP64 have 16"
        assert refused(request) == (told, "$.raw_input_contents[1]")
        request = request_of(ROWS, raw=False)
        request.inputs[0].contents.int64_contents.append(3)
        told = "3 values where the shape says 2"
        assert refused(request) == (told, "$.inputs[0].contents")

    def test_a_text_that_is_cut_off(self):
        request = request_of(ROWS, raw=True)
        request.raw_input_contents[3] = request.raw_input_contents[3][:-1]
        assert refused(request) == ("the last text is cut off", "$.inputs[3]")

    @pytest.mark.parametrize("raw", [True, False])
    def test_a_text_that_is_no_utf8(self, raw: bool):
        request = request_of(ROWS, raw=raw)
        if raw:
            request.raw_input_contents[3] = b"\x01\0\0\0\xff\x01\0\0\0a"
        else:
            request.inputs[3].contents.bytes_contents[0] = b"\xff"
        assert refused(request) == ("text 0 is no UTF-8", "$.inputs[3]")

    @pytest.mark.parametrize("shape", [[], [2, 2], [1, 2], [-1], [2, -2], [2**62, 2**62], [0]])
    @pytest.mark.parametrize("raw", [True, False])
    def test_a_shape_that_is_no_column(self, shape: list[int], raw: bool):
        request = request_of(ROWS, raw=raw)
        request.inputs[0].shape[:] = shape
        refused(request)

    @pytest.mark.parametrize("raw", [True, False])
    @pytest.mark.parametrize("kind", ["FP64", "FP32", "INT32", "BOOL", "BYTES", "", "float"])
    def test_a_datatype_that_is_not_the_fields(self, kind: str, raw: bool):
        request = request_of(ROWS, raw=raw)
        request.inputs[0].datatype = kind
        refused(request)

    def test_values_in_the_list_of_another_type(self):
        request = request_of(ROWS, raw=False)
        request.inputs[1].contents.fp32_contents.append(1)
        told = "FP64 values stand in fp64_contents, not in fp32_contents"
        assert refused(request) == (told, "$.inputs[1].contents")

    def test_values_in_both_places(self):
        request = request_of(ROWS, raw=True)
        request.inputs[0].contents.int64_contents.append(1)
        told = "values stand in contents or in raw_input_contents, not in both"
        assert refused(request) == (told, "$.inputs[0].contents")

    def test_another_number_of_raw_contents(self):
        request = request_of(ROWS, raw=True)
        request.raw_input_contents.append(b"")
        told = "5 raw_input_contents for 4 inputs"
        assert refused(request) == (told, "$.raw_input_contents")

    def test_no_values_at_all(self):
        assert "no row" in refused(service_pb2.ModelInferRequest(model_name="river"))[0]

    @given(st.data())
    def test_whatever_is_changed_is_refused_as_the_callers_or_taken(self, data: st.DataObject):
        raw = data.draw(st.booleans())
        request = request_of(ROWS, raw=raw)
        place = data.draw(st.integers(0, 3))
        tensor = request.inputs[place]
        change = data.draw(st.sampled_from(["shape", "datatype", "values", "name"]))
        if change == "shape":
            tensor.shape[:] = data.draw(st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3))
        elif change == "datatype":
            tensor.datatype = data.draw(st.sampled_from([*CONTENTS, "FP16", "UINT8", "é"]))
        elif change == "name":
            tensor.name = data.draw(st.sampled_from([*TYPES, "LEVELS", "", "é"]))
        elif raw:
            request.raw_input_contents[place] = data.draw(st.binary(max_size=40))
        else:
            tensor.contents.bytes_contents.append(data.draw(st.binary(max_size=8)))
        try:
            assert len(read(request).rows) >= 1
        except RequestError as error:
            assert error.status in (400, 422)

    @given(st.binary(max_size=200))
    def test_bytes_of_any_kind_are_no_fault_of_ours(self, message: bytes):
        try:
            request = messages()["ModelInferRequest"].FromString(message)
            infer_body(request)
        except (DecodeError, RequestError):
            pass


class TestAnswer:
    @given(
        st.lists(st.tuples(st.floats(allow_nan=False), st.text(max_size=9)), min_size=1),
        st.booleans(),
    )
    def test_the_public_client_reads_the_numbers_to_the_bit(self, values: list, raw: bool):
        scores = np.array([score for score, _ in values])
        labels = np.arange(len(values))
        ids = [text.encode("utf-8", "replace").decode() for _, text in values]
        wanted = InferRequest(rows=[], id="7", outputs=None, in_binary=True)
        tensors = {"score": scores, "label": labels, "prediction_id": ids}
        answer = open_inference.answer(wanted, tensors, model="river", version=3)
        num_head_bytes = int(dict(answer.headers)[b"inference-header-content-length"])
        ours = infer_response(answer.body, num_head_bytes, raw=raw)
        theirs = service_pb2.ModelInferResponse.FromString(ours.SerializeToString())
        assert (theirs.id, theirs.model_name, theirs.model_version) == ("7", "river", "3")
        read = self.raw if raw else self.typed
        assert read(theirs, "score").tobytes() == scores.tobytes()
        assert read(theirs, "label").tolist() == labels.tolist()
        assert [text.decode() for text in read(theirs, "prediction_id")] == ids

    def raw(self, response: Any, name: str) -> np.ndarray:
        assert not any(output.contents.ByteSize() for output in response.outputs)
        return InferResult(response).as_numpy(name)

    def typed(self, response: Any, name: str) -> np.ndarray:
        """The public client's reader knows raw numbers alone."""
        assert not response.raw_output_contents
        (output,) = (each for each in response.outputs if each.name == name)
        assert list(output.shape) == [len(getattr(output.contents, CONTENTS[output.datatype]))]
        kind = object if output.datatype == "BYTES" else None
        return np.array(getattr(output.contents, CONTENTS[output.datatype]), dtype=kind)

    def test_a_models_description_is_that_of_http(self):
        body = metadata("river", 3, FIELDS, outputs={"score": "FP64"}).body
        theirs = service_pb2.ModelMetadataResponse.FromString(
            model_metadata(body).SerializeToString()
        )
        assert (theirs.name, list(theirs.versions), theirs.platform) == (
            "river",
            ["3"],
            open_inference.PLATFORM,
        )
        inputs = [(each.name, each.datatype, list(each.shape)) for each in theirs.inputs]
        assert inputs == [(name, kind, [-1]) for name, kind in TYPES.items()]
        assert [(each.name, each.datatype) for each in theirs.outputs] == [("score", "FP64")]


def test_a_name_of_any_text_leads_to_a_model_and_nowhere_else():
    assert model_path("river", "", "/infer") == "/v2/models/river/infer"
    assert model_path("river", "3", "/ready") == "/v2/models/river/versions/3/ready"
    assert model_path("a/../b?c#d%", "4/5") == "/v2/models/a%2F..%2Fb%3Fc%23d%25/versions/4%2F5"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "INVALID_ARGUMENT"),
        (401, "UNAUTHENTICATED"),
        (403, "PERMISSION_DENIED"),
        (404, "NOT_FOUND"),
        (413, "RESOURCE_EXHAUSTED"),
        (422, "INVALID_ARGUMENT"),
        (429, "RESOURCE_EXHAUSTED"),
        (500, "INTERNAL"),
        (503, "UNAVAILABLE"),
        (504, "DEADLINE_EXCEEDED"),
    ],
)
def test_a_refusal_has_the_code_of_its_status_and_its_words(status: int, code: str):
    expected = grpc.StatusCode[code]
    assert refusal(status, b'{"message":"no","path":"$.a"}') == (expected, "no ($.a)")
    assert refusal(status, b'{"message":"no","path":"$"}') == (expected, "no")
    for body in (b"<html>", b"[]", b'{"message":"no"}', b""):
        assert refusal(status, body) == (expected, f"the server answered with {status}")
