"""The Open Inference Protocol v2 over HTTP: tensors by name instead of rows, the same predictions.

A model's inputs are the fields of its request, each a tensor of shape [n] (or [n, 1]): what a row
of the plain protocol has. JSON data, and the extension for binary tensors, both ways. Times are
texts (BYTES), as in the plain protocol. Pure: no I/O here.

The protocol: github.com/kserve/open-inference-protocol; the binary tensors: Triton's extension
`binary_tensor_data`.
"""

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from penstock.errors import RequestError
from penstock.serving import http
from penstock.serving.requests import (
    FieldLike,
    RequestParser,
    Row,
    load,
    shown,
    wrong_type,
)

BINARY = b"application/octet-stream"
PLATFORM = "penstock_onnx"
EXTENSIONS = ("binary_tensor_data",)
_LENGTH_HEADER = b"inference-header-content-length"
_DATATYPES = {
    "int64": "INT64", "float64": "FP64", "bool": "BOOL", "string": "BYTES", "timestamp": "BYTES",
}  # fmt: skip
_NUMPY: Mapping[str, np.dtype[Any]] = {
    "INT64": np.dtype("<i8"),
    "FP64": np.dtype("<f8"),
    "BOOL": np.dtype("u1"),
}
_INPUT_KEYS = frozenset({"name", "shape", "datatype", "parameters", "data"})
_REQUEST_KEYS = frozenset({"id", "inputs", "outputs", "parameters"})
_OUTPUT_KEYS = frozenset({"name", "parameters"})


@dataclass(frozen=True, kw_only=True)
class InferRequest:
    """A request for predictions: rows, and how the answer is wanted."""

    rows: list[Row]
    id: str | None
    outputs: Mapping[str, bool] | None
    """By name, whether it is wanted in binary; None: all of them."""
    in_binary: bool
    """Whether outputs that nobody named are wanted so."""


Tensor = np.ndarray | Sequence[str]
"""[n] numbers or texts."""


def metadata(
    name: str, version: int, fields: Sequence[FieldLike], *, outputs: Mapping[str, str]
) -> http.Answer:
    """Describe a model.

    Args:
        name: the model.
        version: the one that answers.
        fields: of its requests.
        outputs: datatype by name.
    """
    inputs = [(field.name, _DATATYPES[field.dtype]) for field in fields]
    tensors = {
        side: [{"name": name, "datatype": kind, "shape": [-1]} for name, kind in given]
        for side, given in (("inputs", inputs), ("outputs", list(outputs.items())))
    }
    body = {"name": name, "versions": [str(version)], "platform": PLATFORM, **tensors}
    return http.Answer(status=200, body=orjson.dumps(body))


class InferReader:
    """Turns infer bodies into rows of the declared fields."""

    def __init__(
        self, fields: Sequence[FieldLike], parser: RequestParser, *, outputs: Sequence[str]
    ) -> None:
        """Prepare for one model.

        Args:
            fields: of its requests.
            parser: judges the values, as it does those of the plain protocol.
            outputs: the names that a request may ask for.
        """
        self._datatypes = {field.name: _DATATYPES[field.dtype] for field in fields}
        self._parser = parser
        self._outputs = tuple(outputs)

    def read(self, headers: http.Headers, body: bytes) -> InferRequest:
        """Read a request.

        Raises:
            RequestError: 400 or 422, with the path of the offending part.
        """
        head, tail = _parted(headers, body)
        document = load(head)
        _check_keys(document, _REQUEST_KEYS, "$")
        parameters = _object_at(document, "parameters", "$")
        columns = self._columns(document.get("inputs"), tail)
        by_row = zip(*columns.values(), strict=True)
        rows = [dict(zip(columns, values, strict=True)) for values in by_row]
        request_id = document.get("id")
        if request_id is not None and type(request_id) is not str:
            raise wrong_type(request_id, "a string", "$.id")
        return InferRequest(
            rows=self._parser.rows_of(rows, path="$.inputs"),
            id=request_id,
            outputs=self._wanted(document.get("outputs")),
            in_binary=_flag(parameters, "binary_data_output", "$.parameters"),
        )

    def _columns(self, inputs: Any, tail: bytes) -> dict[str, list[Any]]:
        if type(inputs) is not list:
            raise wrong_type(inputs, "an array of tensors", "$.inputs")
        columns: dict[str, list[Any]] = {}
        start = 0
        for place, tensor in enumerate(inputs):
            path = f"$.inputs[{place}]"
            _check_keys(tensor, _INPUT_KEYS, path)
            name = tensor.get("name")
            if type(name) is not str or name not in self._datatypes:
                raise _no_such("input", name, self._datatypes, path)
            if name in columns:
                raise RequestError(
                    422, "duplicate_key", f"the input {name} is there twice", path=path
                )
            num_rows = self._num_rows(tensor, self._datatypes[name], path)
            size = _object_at(tensor, "parameters", path).get("binary_data_size")
            if size is None:
                columns[name] = _listed(tensor.get("data"), num_rows, f"{path}.data")
            else:
                if type(size) is not int or not 0 <= size <= len(tail) - start:
                    raise _wrong_size(f"{path}.parameters.binary_data_size", len(tail) - start)
                part = tail[start : start + size]
                columns[name] = _unpacked(part, self._datatypes[name], num_rows, path)
                start += size
        if start != len(tail):
            raise RequestError(
                400, "unreadable", f"{len(tail) - start} bytes behind the JSON belong to no input"
            )
        lengths = {len(values) for values in columns.values()}
        if len(lengths) > 1:
            raise RequestError(
                422, "wrong_shape", "the inputs are of different lengths", path="$.inputs"
            )
        return columns

    def _num_rows(self, tensor: Mapping[str, Any], datatype: str, path: str) -> int:
        if tensor.get("datatype") != datatype:
            given = tensor.get("datatype")
            text = shown(given) if type(given) is str else "none"
            raise RequestError(
                422,
                "wrong_type",
                f"the datatype is {text}, not {datatype}",
                path=f"{path}.datatype",
            )
        shape = tensor.get("shape")
        if (
            type(shape) is not list
            or not all(type(size) is int and size >= 0 for size in shape)
            or shape[1:] not in ([], [1])
            or not shape
        ):
            raise RequestError(
                422, "wrong_shape", "the shape is not [n] or [n, 1]", path=f"{path}.shape"
            )
        return int(shape[0])

    def _wanted(self, outputs: Any) -> dict[str, bool] | None:
        if outputs is None:
            return None
        if type(outputs) is not list:
            raise wrong_type(outputs, "an array of outputs", "$.outputs")
        wanted = {}
        for place, output in enumerate(outputs):
            path = f"$.outputs[{place}]"
            _check_keys(output, _OUTPUT_KEYS, path)
            name = output.get("name")
            if name not in self._outputs:
                raise _no_such("output", name, self._outputs, path)
            parameters = _object_at(output, "parameters", path)
            wanted[name] = _flag(parameters, "binary_data", f"{path}.parameters")
        return wanted


def answer(
    request: InferRequest, tensors: Mapping[str, Tensor], *, model: str, version: int
) -> http.Answer:
    """Write the tensors that were asked for."""
    wanted = request.outputs
    if wanted is None:
        wanted = dict.fromkeys(tensors, request.in_binary)
    outputs, tail = [], []
    for name, in_binary in wanted.items():
        values = tensors[name]
        kind = datatype_of(values)
        output: dict[str, Any] = {"name": name, "datatype": kind, "shape": [len(values)]}
        if in_binary:
            tail.append(_packed(values))
            output["parameters"] = {"binary_data_size": len(tail[-1])}
        else:
            output["data"] = values.tolist() if isinstance(values, np.ndarray) else list(values)
        outputs.append(output)
    document: dict[str, Any] = {
        "model_name": model,
        "model_version": str(version),
        "outputs": outputs,
    }
    if request.id is not None:
        document["id"] = request.id
    head = orjson.dumps(document)
    if not tail:
        return http.Answer(status=200, body=head)
    return http.Answer(
        status=200,
        body=b"".join((head, *tail)),
        content_type=BINARY,
        headers=((_LENGTH_HEADER, b"%d" % len(head)),),
    )


def datatype_of(values: Tensor) -> str:
    """Name what a tensor holds."""
    if not isinstance(values, np.ndarray):
        return "BYTES"
    return "INT64" if values.dtype.kind == "i" else "FP64"


def _parted(headers: http.Headers, body: bytes) -> tuple[bytes, bytes]:
    """Part the JSON from the binary tensors behind it."""
    if not any(name == _LENGTH_HEADER for name, _ in headers):
        return body, b""
    length = http.only_header(headers, _LENGTH_HEADER) or b""
    if not length.isdigit() or len(length) > 12 or int(length) > len(body):
        raise RequestError(
            400, "unreadable", f"Inference-Header-Content-Length is no number up to {len(body)}"
        )
    return body[: int(length)], body[int(length) :]


def _listed(data: Any, num_rows: int, path: str) -> list[Any]:
    """Give the values of a tensor in JSON, flat or nested as its shape."""
    if type(data) is not list:
        raise wrong_type(data, "an array", path)
    values = [item[0] if type(item) is list and len(item) == 1 else item for item in data]
    if len(values) != num_rows:
        raise RequestError(
            422, "wrong_shape", f"{len(values)} values where the shape says {num_rows}", path=path
        )
    return values


def _unpacked(part: bytes, datatype: str, num_rows: int, path: str) -> list[Any]:
    if datatype == "BYTES":
        return _texts(part, num_rows, path)
    dtype = _NUMPY[datatype]
    if len(part) != num_rows * dtype.itemsize:
        raise _wrong_size(f"{path}.parameters.binary_data_size", num_rows * dtype.itemsize)
    values = np.frombuffer(part, dtype)
    if datatype == "BOOL":
        if (values > 1).any():
            raise RequestError(422, "wrong_type", "a BOOL is a byte of 0 or 1", path=path)
        values = values.astype(np.bool_)
    return list(values.tolist())


def _texts(part: bytes, num_rows: int, path: str) -> list[str]:
    """Read texts, each behind its length in four bytes."""
    found, start = [], 0
    while start < len(part):
        begin = start + 4
        end = begin + struct.unpack_from("<I", part, start)[0] if begin <= len(part) else begin
        if begin > len(part) or end > len(part):
            raise RequestError(422, "wrong_shape", "the last text is cut off", path=path)
        try:
            found.append(part[begin:end].decode("utf-8"))
        except UnicodeDecodeError:
            raise RequestError(
                422, "wrong_type", f"text {len(found)} is no UTF-8", path=path
            ) from None
        start = end
    if len(found) != num_rows:
        raise RequestError(
            422, "wrong_shape", f"{len(found)} texts where the shape says {num_rows}", path=path
        )
    return found


def _packed(values: Tensor) -> bytes:
    if isinstance(values, np.ndarray):
        return bytes(values.astype(_NUMPY[datatype_of(values)]).tobytes())
    texts = [text.encode("utf-8") for text in values]
    return b"".join(struct.pack("<I", len(text)) + text for text in texts)


def _check_keys(document: Any, allowed: frozenset[str], path: str) -> None:
    if type(document) is not dict:
        raise wrong_type(document, "an object", path)
    for key in document:
        if key not in allowed:
            listed = ", ".join(sorted(allowed))
            raise RequestError(
                422, "unknown_key", f"{shown(key)} is no key; allowed: {listed}", path=path
            )


def _object_at(document: Mapping[str, Any], key: str, path: str) -> dict[str, Any]:
    found = document.get(key, {})
    if type(found) is not dict:
        raise wrong_type(found, "an object", f"{path}.{key}")
    return found


def _flag(parameters: Mapping[str, Any], key: str, path: str) -> bool:
    found = parameters.get(key, False)
    if type(found) is not bool:
        raise wrong_type(found, "true or false", f"{path}.{key}")
    return found


def _no_such(
    kind: str, name: Any, known: Sequence[str] | Mapping[str, str], path: str
) -> RequestError:
    text = shown(name) if type(name) is str else "nothing"
    return RequestError(
        422,
        "unknown_key",
        f"{text} is no {kind}; there are {', '.join(known)}",
        path=f"{path}.name",
    )


def _wrong_size(path: str, allowed: int) -> RequestError:
    return RequestError(422, "wrong_shape", f"the size is not of {allowed} bytes", path=path)
