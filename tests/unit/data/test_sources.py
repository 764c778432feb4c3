import sqlite3

import polars as pl
import pytest

from data_room import SPILLS, spills
from penstock.data.checks import check
from penstock.data.source_kinds import FileSource, SqlSource
from penstock.data.sources import inspect, read
from penstock.errors import DataError

HEADER = "id,at,litres,gate,open\n"


def rows_of(source):
    """Every block's kept rows and number of bad ones."""
    blocks = [
        check(block, SPILLS) for unit in inspect(source, 0, SPILLS).units
        for block in read(unit, SPILLS)
    ]  # fmt: skip
    kept = pl.concat([b.kept for b in blocks]) if blocks else spills(0)
    return kept.drop("__row", strict=False), sum(b.bad.height for b in blocks)


def file_of(tmp_path, kind, frame):
    path = tmp_path / f"spills.{kind}"
    if kind == "parquet":
        frame.write_parquet(path)
    elif kind == "csv":
        frame.with_columns(pl.col("at").dt.to_string("iso")).write_csv(path)
    else:
        frame.with_columns(pl.col("at").dt.to_string("iso")).write_ndjson(path)
    return FileSource(path=path)


class TestFiles:
    @pytest.mark.parametrize("kind", ["parquet", "csv", "jsonl"])
    def test_every_kind_gives_the_same_rows(self, tmp_path, kind):
        kept, num_bad = rows_of(file_of(tmp_path, kind, spills(100)))
        assert num_bad == 0
        assert kept.equals(spills(100))

    def test_row_groups_are_split_into_units_that_know_their_first_row(self, tmp_path, monkeypatch):
        monkeypatch.setattr("penstock.data.sources._UNIT_ROWS", 100)
        path = tmp_path / "x.parquet"
        spills(1000).write_parquet(path, row_group_size=64)
        units = inspect(FileSource(path=path), 0, SPILLS).units
        assert [u.first_row for u in units] == list(range(0, 1000, 128))
        kept, _ = rows_of(FileSource(path=path))
        assert kept.equals(spills(1000))

    def test_further_columns_are_left_aside_and_named(self, tmp_path):
        source = file_of(tmp_path, "parquet", spills(3).with_columns(extra=1))
        assert inspect(source, 0, SPILLS).ignored_columns == ("extra",)

    def test_the_digest_is_of_the_bytes(self, tmp_path):
        first = inspect(file_of(tmp_path, "csv", spills(3)), 0, SPILLS).digest
        second = inspect(file_of(tmp_path, "csv", spills(4)), 0, SPILLS).digest
        again = inspect(file_of(tmp_path, "csv", spills(3)), 0, SPILLS).digest
        assert first == again != second

    def test_empty_text_is_null_but_quoted_empty_text_is_a_text(self, tmp_path):
        path = tmp_path / "x.csv"
        path.write_text(HEADER + '1,2024-05-01,,,true\n2,2024-05-01,"","",true\n')
        blocks = [
            b for u in inspect(FileSource(path=path), 0, SPILLS).units for b in read(u, SPILLS)
        ]
        assert blocks[0].columns["litres"].to_list() == [None, None]
        assert blocks[0].columns["gate"].to_list() == [None, ""]

    def test_a_file_that_changes_meanwhile_is_refused(self, tmp_path):
        source = file_of(tmp_path, "csv", spills(3))
        unit = inspect(source, 0, SPILLS).units[0]
        file_of(tmp_path, "csv", spills(4))
        with pytest.raises(DataError, match="changed while it was read"):
            list(read(unit, SPILLS))


class TestRefusals:
    @pytest.mark.parametrize(
        ("name", "content", "word"),
        [
            ("x.txt", b"1", "ends in '.txt'"),
            ("x.csv", b"", "empty"),
            ("x.csv", b"id,at,litres,gate\n", "lacks the columns open"),
            ("x.csv", b"id,at,litres,gate,open,id\n", "more than once"),
            ("x.csv", HEADER.encode() + b"1,2024-05-01,1,north,tr", "line end"),
            ("x.csv", HEADER.encode() + b"1,2024-05-01,1,north\n", "broken"),
            ("x.csv", HEADER.encode() + b"1,2024-05-01,1,\xff,true\n", "broken"),
            ("x.csv", HEADER.encode() + b'1,2024-05-01,1,"north,true\n', "broken"),
            ("x.jsonl", b'{"id": 1', "line 1 is not JSON"),
            ("x.jsonl", b'{"id": NaN}\n', "line 1 is not JSON"),
            ("x.jsonl", b"[1]\n", "line 1 is a list"),
            ("x.jsonl", b'{"id": 1}\n', "lacks the columns at, litres"),
            ("x.parquet", b"PAR1", "4 bytes"),
            ("x.parquet", b"PAR1" + b"x" * 20 + b"PARE", "encrypted"),
            ("x.parquet", b"PAR1" + b"x" * 20 + b"PAR1", "longer than the file"),
        ],
    )
    def test_a_broken_file_is_refused_by_name(self, tmp_path, name, content, word):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=word) as refused:
            rows_of(FileSource(path=path))
        assert str(path) in str(refused.value)

    def test_a_column_of_another_type_is_refused_with_both_types(self, tmp_path):
        frame = spills(3).with_columns(pl.col("id").cast(pl.Int32))
        with pytest.raises(DataError, match=r"id as Int32.*Allowed: id as Int64"):
            inspect(file_of(tmp_path, "parquet", frame), 0, SPILLS)

    def test_an_absent_file_and_a_folder_are_refused(self, tmp_path):
        with pytest.raises(DataError, match="there is no file"):
            inspect(FileSource(path=tmp_path / "no.csv"), 0, SPILLS)
        (tmp_path / "folder.csv").mkdir()
        with pytest.raises(DataError, match="is a folder"):
            inspect(FileSource(path=tmp_path / "folder.csv"), 0, SPILLS)


class TestSql:
    def test_a_query_gives_its_rows(self, tmp_path):
        with sqlite3.connect(tmp_path / "x.db") as connection:
            connection.execute("create table s (id integer, at text, litres real, gate text)")
            connection.executemany(
                "insert into s values (?, ?, ?, ?)",
                [(1, "2024-05-01T12:00:00Z", 2.5, "north"), (2, "never", 3, None)],
            )
        connection.close()
        query = "select *, 'x' as open from s"
        source = SqlSource.model_validate({"url": f"sqlite:///{tmp_path}/x.db", "query": query})
        blocks = [b for u in inspect(source, 0, SPILLS).units for b in read(u, SPILLS)]
        assert blocks[0].columns["litres"] == [2.5, 3.0]
        assert blocks[0].columns["at"] == ["2024-05-01T12:00:00Z", "never"]

    @pytest.mark.parametrize(
        ("address", "secrets"),
        [
            ("joe:s3cret@127.0.0.1:9/none", ("s3cret",)),
            ("joe:p%40ss@127.0.0.1:9/none", ("p%40ss", "p@ss")),
            ("joe:hu/sh#ed?no@127.0.0.1:9/none", ("hu/", "sh#ed", "?no")),
            ("joe:hush@quiet@127.0.0.1:9/none", ("hush", "quiet")),
            ("joe:hush@calm:quiet@127.0.0.1/none", ("hush", "calm", "quiet")),
            ("joe:hush hush@127.0.0.1:9/none", ("hush",)),
            ("joe@127.0.0.1:9/none?password=hu%2Fsh&sslmode=allow", ("hu%2Fsh", "hu/sh")),
        ],
    )
    def test_a_password_stands_in_no_error_and_no_name(self, address, secrets):
        url = f"postgresql+psycopg://{address}"
        source = SqlSource.model_validate({"url": url, "query": "select 1"})
        with pytest.raises(DataError) as refused:
            rows_of(source)
        for text in (str(refused.value), source.name, repr(source)):
            for secret in secrets:
                assert secret not in text

    def test_a_wrong_query_is_refused_with_the_databases_words(self, tmp_path):
        source = SqlSource.model_validate(
            {"url": f"sqlite:///{tmp_path}/x.db", "query": "select * from nowhere"}
        )
        with pytest.raises(DataError, match="no such table: nowhere"):
            rows_of(source)
