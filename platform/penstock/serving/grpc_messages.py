"""The messages of the Open Inference Protocol over gRPC, and of gRPC's health protocol.

Built at run time from the list below, in a pool of their own: generated code is bound to a version
of protobuf, which Ray and Feast choose, and a second definition of `inference.…` in protobuf's
common pool (any client's) is an error. What is nested in the protocol stands flat here; only the
numbers and types of fields reach the wire. Parameters are left out: nothing here reads any.

The protocol: github.com/kserve/open-inference-protocol, specification/protocol/inference_grpc.md;
health: github.com/grpc/grpc, doc/health-checking.md.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

SERVICE = "inference.GRPCInferenceService"
HEALTH_SERVICE = "grpc.health.v1.Health"
SERVING, NOT_SERVING = 1, 2
"""A HealthCheckResponse's `status`: of an enum, which is written as an int32 is."""

_PACKAGE = "penstock.inference"
_SCHEMA: Mapping[str, str] = {
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live = 1",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready = 1",
    "ModelReadyRequest": "string name = 1; string version = 2",
    "ModelReadyResponse": "bool ready = 1",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name = 1; string version = 2; repeated string extensions = 3",
    "ModelMetadataRequest": "string name = 1; string version = 2",
    "TensorMetadata": "string name = 1; string datatype = 2; repeated int64 shape = 3",
    "ModelMetadataResponse": (
        "string name = 1; repeated string versions = 2; string platform = 3; "
        "repeated TensorMetadata inputs = 4; repeated TensorMetadata outputs = 5"
    ),
    "InferTensorContents": (
        "repeated bool bool_contents = 1; repeated int32 int_contents = 2; "
        "repeated int64 int64_contents = 3; repeated uint32 uint_contents = 4; "
        "repeated uint64 uint64_contents = 5; repeated float fp32_contents = 6; "
        "repeated double fp64_contents = 7; repeated bytes bytes_contents = 8"
    ),
    "InferInputTensor": (
        "string name = 1; string datatype = 2; repeated int64 shape = 3; "
        "InferTensorContents contents = 5"
    ),
    "InferRequestedOutputTensor": "string name = 1",
    "ModelInferRequest": (
        "string model_name = 1; string model_version = 2; string id = 3; "
        "repeated InferInputTensor inputs = 5; repeated InferRequestedOutputTensor outputs = 6; "
        "repeated bytes raw_input_contents = 7"
    ),
    "InferOutputTensor": (
        "string name = 1; string datatype = 2; repeated int64 shape = 3; "
        "InferTensorContents contents = 5"
    ),
    "ModelInferResponse": (
        "string model_name = 1; string model_version = 2; string id = 3; "
        "repeated InferOutputTensor outputs = 5; repeated bytes raw_output_contents = 6"
    ),
    "HealthCheckRequest": "string service = 1",
    "HealthCheckResponse": "int32 status = 1",
}


@cache
def messages() -> Mapping[str, Any]:
    """Give the class of each message, by its name."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(
        name="penstock/inference.proto", package=_PACKAGE, syntax="proto3"
    )
    kinds = descriptor_pb2.FieldDescriptorProto
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split("; ")):
            declared, _, number = field.partition(" = ")
            *repeated, kind, field_name = declared.split(" ")
            made = message.field.add(name=field_name, number=int(number))
            made.label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
            if kind in _SCHEMA:
                made.type, made.type_name = kinds.TYPE_MESSAGE, f".{_PACKAGE}.{kind}"
            else:
                made.type = kinds.Type.Value(f"TYPE_{kind.upper()}")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _SCHEMA
    }
