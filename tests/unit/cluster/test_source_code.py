from penstock.cluster import source_code


def test_code_is_read_and_all_else_left(tmp_path):
    (tmp_path / "a" / "__pycache__").mkdir(parents=True)
    (tmp_path / "a" / "x.py").write_text("1")
    (tmp_path / "a" / "__pycache__" / "x.py").write_text("2")
    (tmp_path / "a" / "data.parquet").write_bytes(b"3")
    places = {"code": tmp_path, "one.toml": tmp_path / "absent.toml"}
    assert source_code.read(places) == {"code/a/x.py": b"1"}


def test_the_digest_is_of_names_and_contents_and_not_of_their_order():
    digest = source_code.digest({"a": b"1", "b": b"2"})
    assert digest == source_code.digest({"b": b"2", "a": b"1"})
    assert digest != source_code.digest({"a": b"12", "b": b""})
