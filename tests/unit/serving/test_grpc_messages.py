import pytest
from tritonclient.grpc import service_pb2

from penstock.serving.grpc_messages import messages


def fields_of(message: type) -> dict:
    """Number, type and cardinality by name; the parameters are not ours."""
    return {
        field.name: (field.number, field.type, field.is_repeated)
        for field in message.DESCRIPTOR.fields
        if field.name != "parameters"
    }


class TestAgainstTritonsOwn:
    """The public client's messages, which generated code made from the published definition."""

    theirs = (
        service_pb2,
        service_pb2.ModelMetadataResponse,
        service_pb2.ModelInferRequest,
        service_pb2.ModelInferResponse,
    )

    @pytest.mark.parametrize(
        "name", [name for name in messages() if not name.startswith("HealthCheck")]
    )
    def test_every_field_has_its_number_and_type(self, name: str):
        (theirs,) = (getattr(each, name) for each in self.theirs if hasattr(each, name))
        assert fields_of(messages()[name]) == fields_of(theirs)

    def test_every_field_of_a_message_has_its_message(self):
        ours = messages()
        for name, field in (("ModelInferRequest", "inputs"), ("ModelInferRequest", "outputs")):
            theirs = getattr(service_pb2, name).DESCRIPTOR.fields_by_name[field].message_type.name
            found = ours[name].DESCRIPTOR.fields_by_name[field].message_type.name
            assert found == theirs


def test_health_is_written_as_its_enum_is():
    # doc/health-checking.md: `ServingStatus status = 1`, SERVING = 1; a varint in field 1.
    assert messages()["HealthCheckResponse"](status=1).SerializeToString() == b"\x08\x01"
