import pytest
from feast.infra.key_encoding_utils import serialize_entity_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from hypothesis import given
from hypothesis import strategies as st

from penstock.errors import DeclarationError
from penstock.features import entity_keys

whole_numbers = st.integers(-(2**63), 2**63 - 1)


class TestEncode:
    @given(st.lists(whole_numbers, max_size=5))
    def test_whole_numbers_are_written_as_feast_writes_them(self, values):
        expected = [
            serialize_entity_key(
                EntityKey(join_keys=["rider_id"], entity_values=[Value(int64_val=value)])
            )
            for value in values
        ]
        assert entity_keys.encode({"rider_id": values}) == expected

    @given(whole_numbers, st.text())
    def test_several_join_keys_stand_in_the_order_of_their_names(self, number, text):
        expected = serialize_entity_key(
            EntityKey(
                join_keys=["zone", "bike"],
                entity_values=[Value(string_val=text), Value(int64_val=number)],
            )
        )
        assert entity_keys.encode({"zone": [text], "bike": [number]}) == [expected]

    @pytest.mark.parametrize("value", [2**63, 1.5, None])
    def test_a_value_that_is_no_key_is_refused_with_its_column(self, value):
        with pytest.raises(DeclarationError, match="'rider_id'"):
            entity_keys.encode({"rider_id": [value]})
