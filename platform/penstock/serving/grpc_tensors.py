"""Open Inference messages of gRPC as requests over HTTP with binary tensors, and answers back.

The values are judged where they are for HTTP: in the replica. Here is only looked at what has no
counterpart there. Pure: no I/O here.
"""

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import grpc
import numpy as np
import orjson

from penstock.errors import RequestError
from penstock.serving.grpc_messages import messages

_CONTENTS: Mapping[str, str] = {
    "BOOL": "bool_contents",
    "INT64": "int64_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Where the values of a type stand; no model takes or gives others."""
_NUMPY: Mapping[str, np.dtype[Any]] = {
    "BOOL": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
    "FP64": np.dtype("<f8"),
}
_CODES: Mapping[int, grpc.StatusCode] = {
    **dict.fromkeys((400, 408, 415, 421, 422), grpc.StatusCode.INVALID_ARGUMENT),
    401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}


def model_path(name: str, version: str, leaf: str = "") -> str:
    """Write the path of a model over HTTP; a name of any text names nothing else than a model."""
    versions = f"/versions/{quote(version, safe='')}" if version else ""
    return f"/v2/models/{quote(name, safe='')}{versions}{leaf}"


def infer_body(request: Any) -> tuple[bytes, int]:
    """Write a ModelInferRequest as a body of JSON and the binary tensors behind it.

    Returns:
        The body, and how many bytes of it are JSON.

    Raises:
        RequestError: 422, with the path of the offending part.
    """
    raw = list(request.raw_input_contents)
    if raw and len(raw) != len(request.inputs):
        raise RequestError(
            422,
            "wrong_shape",
            f"{len(raw)} raw_input_contents for {len(request.inputs)} inputs",
            path="$.raw_input_contents",
        )
    inputs, tail = [], []
    for place, tensor in enumerate(request.inputs):
        path = f"$.inputs[{place}]"
        if not raw:
            part = _packed(tensor, f"{path}.contents")
        elif tensor.contents.ByteSize():
            raise RequestError(
                422,
                "wrong_shape",
                "values stand in contents or in raw_input_contents, not in both",
                path=f"{path}.contents",
            )
        else:
            part = raw[place]
            _check_size(tensor, part, f"$.raw_input_contents[{place}]")
        tail.append(part)
        described = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        inputs.append(described | {"parameters": {"binary_data_size": len(part)}})
    document: dict[str, Any] = {"inputs": inputs, "parameters": {"binary_data_output": True}}
    if request.id:
        document["id"] = request.id
    if request.outputs:
        wanted = {"parameters": {"binary_data": True}}
        document["outputs"] = [{"name": output.name, **wanted} for output in request.outputs]
    head = orjson.dumps(document)
    return b"".join((head, *tail)), len(head)


def infer_response(body: bytes, num_head_bytes: int, *, raw: bool) -> Any:
    """Read an answer with binary tensors as a ModelInferResponse.

    Args:
        body: JSON and the tensors behind it.
        num_head_bytes: how many of its bytes are JSON.
        raw: whether the values are wanted as raw_output_contents, as the request had its own.
    """
    document = orjson.loads(body[:num_head_bytes])
    response = messages()["ModelInferResponse"](
        model_name=document["model_name"],
        model_version=document["model_version"],
        id=document.get("id", ""),
    )
    start = num_head_bytes
    for output in document["outputs"]:
        size = output["parameters"]["binary_data_size"]
        part, start = body[start : start + size], start + size
        kind = output["datatype"]
        tensor = response.outputs.add(name=output["name"], datatype=kind, shape=output["shape"])
        if raw:
            response.raw_output_contents.append(part)
        else:
            getattr(tensor.contents, _CONTENTS[kind]).extend(_values(kind, part))
    return response


def model_metadata(body: bytes) -> Any:
    """Read a model's description as a ModelMetadataResponse."""
    document = orjson.loads(body)
    sides = {side: [_tensor(each) for each in document[side]] for side in ("inputs", "outputs")}
    known = {key: document[key] for key in ("name", "versions", "platform")}
    return messages()["ModelMetadataResponse"](**known, **sides)


def refusal(status: int, body: bytes) -> tuple[grpc.StatusCode, str]:
    """Say with which code and words a refusal over HTTP is one over gRPC."""
    code = _CODES.get(status, grpc.StatusCode.INTERNAL)
    try:
        document = orjson.loads(body)
        message, path = str(document["message"]), str(document["path"])
    except (ValueError, KeyError, TypeError):
        return code, f"the server answered with {status}"
    return code, message if path == "$" else f"{message} ({path})"


def _tensor(described: Mapping[str, Any]) -> Any:
    names = ("name", "datatype", "shape")
    return messages()["TensorMetadata"](**{name: described[name] for name in names})


def _packed(tensor: Any, path: str) -> bytes:
    """Pack the typed values of a tensor; nothing of a type that its datatype tells to be wrong."""
    expected = _CONTENTS.get(tensor.datatype)
    if expected is None:
        return b""
    others = [field.name for field, _ in tensor.contents.ListFields() if field.name != expected]
    if others:
        raise RequestError(
            422,
            "wrong_type",
            f"{tensor.datatype} values stand in {expected}, not in {others[0]}",
            path=path,
        )
    values = getattr(tensor.contents, expected)
    num_values = _num_values(tensor.shape)
    if num_values not in (None, len(values)):
        raise RequestError(
            422,
            "wrong_shape",
            f"{len(values)} values where the shape says {num_values}",
            path=path,
        )
    if expected == "bytes_contents":
        return b"".join(struct.pack("<I", len(text)) + text for text in values)
    return np.array(values, _NUMPY[tensor.datatype]).tobytes()


def _check_size(tensor: Any, part: bytes, path: str) -> None:
    dtype, num_values = _NUMPY.get(tensor.datatype), _num_values(tensor.shape)
    if dtype is None or num_values is None:
        return
    if len(part) != num_values * dtype.itemsize:
        raise RequestError(
            422,
            "wrong_shape",
            f"{len(part)} bytes where {num_values} {tensor.datatype} have "
            f"{num_values * dtype.itemsize}",
            path=path,
        )


def _num_values(shape: Sequence[int]) -> int | None:
    """Count what a shape holds; None for one that the replica refuses."""
    return math.prod(shape) if shape and min(shape) >= 0 else None


def _values(kind: str, part: bytes) -> list[Any]:
    if kind != "BYTES":
        return list(np.frombuffer(part, _NUMPY[kind]).tolist())
    found, start = [], 0
    while start < len(part):
        end = start + 4 + struct.unpack_from("<I", part, start)[0]
        found.append(part[start + 4 : end])
        start = end
    return found
