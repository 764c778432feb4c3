import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as pe
import pytest

from data_room import spills
from penstock.data import parquet_files
from penstock.errors import DataError


class Opaque(pa.ExtensionType):
    """An extension type that tells when somebody builds it from a file's bytes."""

    built: list[bytes] = []  # noqa: RUF012  # shared on purpose: Arrow makes the instances

    def __init__(self):
        super().__init__(pa.int64(), "penstock.tests.opaque")

    def __arrow_ext_serialize__(self):
        return b"payload"

    @classmethod
    def __arrow_ext_deserialize__(cls, storage_type, serialized):
        cls.built.append(serialized)
        return cls()


@pytest.fixture
def opaque():
    pa.register_extension_type(Opaque())
    Opaque.built.clear()
    yield Opaque
    pa.unregister_extension_type("penstock.tests.opaque")


class _Wrap(pe.KmsClient):
    def __init__(self, _config):
        super().__init__()

    def wrap_key(self, key_bytes, _master_key_identifier):
        return key_bytes.hex()

    def unwrap_key(self, wrapped_key, _master_key_identifier):
        return bytes.fromhex(wrapped_key)


def write_encrypted(path, table, *, plaintext_footer):
    factory = pe.CryptoFactory(_Wrap)
    config = pe.EncryptionConfiguration(
        footer_key="key", column_keys={"key": ["id"]}, plaintext_footer=plaintext_footer
    )
    properties = factory.file_encryption_properties(pe.KmsConnectionConfig(), config)
    with pq.ParquetWriter(path, table.schema, encryption_properties=properties) as writer:
        writer.write_table(table)


def read_all(path):
    return [b for b in parquet_files.read_blocks(path, ["id"], [0], 100)]  # noqa: C416  # reads


class TestRefusals:
    def test_an_extension_type_is_refused_before_anything_builds_it(self, tmp_path, opaque):
        path = tmp_path / "x.parquet"
        column = pa.ExtensionArray.from_storage(opaque(), pa.array([1, 2]))
        pq.write_table(pa.table({"id": column}), path)
        opaque.built.clear()
        with pytest.raises(DataError, match="extension types"):
            parquet_files.open_file(path)
        assert opaque.built == []
        # Opened without the guard, it is built: so the assertion above proves something.
        pq.read_table(path)
        assert set(opaque.built) == {b"payload"}

    @pytest.mark.parametrize("depth", range(6))
    def test_an_extension_type_is_found_at_any_depth_and_alignment(self, tmp_path, opaque, depth):
        path = tmp_path / "x.parquet"
        array = pa.ExtensionArray.from_storage(opaque(), pa.array([1]))
        for level in range(depth):
            array = pa.StructArray.from_arrays([array], ["n" * (level + 1)])
        pq.write_table(pa.table({"c" * (depth + 1): array}), path)
        with pytest.raises(DataError, match="extension types"):
            parquet_files.refuse_unsafe(path)

    @pytest.mark.parametrize("plaintext_footer", [False, True])
    def test_an_encrypted_file_is_refused(self, tmp_path, plaintext_footer):
        path = tmp_path / "x.parquet"
        write_encrypted(path, spills(5).to_arrow(), plaintext_footer=plaintext_footer)
        with pytest.raises(DataError, match="encrypted"):
            read_all(path)

    def test_a_flipped_bit_in_a_page_with_checksums_is_refused(self, tmp_path):
        path = tmp_path / "x.parquet"
        table = spills(500).to_arrow()
        pq.write_table(table, path, write_page_checksum=True, compression="none")
        content = bytearray(path.read_bytes())
        content[200] ^= 4
        path.write_bytes(bytes(content))
        with pytest.raises(DataError, match="broken"):
            read_all(path)

    def test_a_text_that_is_no_utf_8_is_refused(self, tmp_path):
        path = tmp_path / "x.parquet"
        broken = pa.array([b"\xff\xfe"]).view(pa.string())
        pq.write_table(pa.table({"id": broken}), path)
        with pytest.raises(DataError, match="UTF8"):
            read_all(path)

    def test_a_sound_file_is_read(self, tmp_path):
        path = tmp_path / "x.parquet"
        pq.write_table(spills(500).to_arrow(), path)
        assert sum(block.height for block in read_all(path)) == 500
