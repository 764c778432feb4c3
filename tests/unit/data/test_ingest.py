import io
import sqlite3
import threading

import orjson
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from data_room import SPILLS, settings_in, spills
from penstock.data import quarantine, tables
from penstock.data.contracts import get_table
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource, SqlSource
from penstock.settings import Settings
from real_data import REPO_ROOT, card_fraud_files


@pytest.fixture
def settings(tmp_path):
    return settings_in(tmp_path)


def write(path, frame):
    frame.write_parquet(path)
    return FileSource(path=path)


def stored(settings, version=None):
    return tables.scan(settings, SPILLS.name, version=version).sort("id").collect()


def check_counts(settings, report):
    """What always holds: nothing of what was read is lost or there twice."""
    assert report.num_read == report.num_kept + report.num_quarantined
    for source in report.sources:
        assert source.num_read == source.num_kept + source.num_quarantined
        assert sum(source.broken_rules.values()) == source.num_quarantined
        if source.status == "refused":
            assert source.reason
    if tables.exists(settings, SPILLS.name):
        bad = quarantine.read(settings, SPILLS.name).collect()
        landed = orjson.loads(tables.latest(settings, SPILLS.name).metadata["ingest"])
        assert landed["num_read"] == landed["num_kept"] + landed["num_quarantined"]
        assert not bad.select("digest", "row").is_duplicated().any()


class TestIngest:
    def test_good_files_land_in_one_version(self, settings, tmp_path):
        sources = [write(tmp_path / f"{n}.parquet", spills(5, first=5 * n)) for n in range(3)]
        report = ingest(settings, SPILLS, sources)
        assert (report.version, report.num_read, report.num_kept) == (0, 15, 15)
        assert stored(settings).equals(spills(15))
        check_counts(settings, report)

    def test_the_same_bytes_land_once_under_any_name(self, settings, tmp_path):
        first = write(tmp_path / "a.parquet", spills(5))
        second = write(tmp_path / "b.parquet", spills(5))
        report = ingest(settings, SPILLS, [first, second])
        assert [s.status for s in report.sources] == ["ingested", "already"]
        again = ingest(settings, SPILLS, [second])
        assert [s.status for s in again.sources] == ["already"]
        assert (again.version, again.num_read) == (0, 0)

    def test_a_refused_file_leaves_nothing_and_the_others_land(self, settings, tmp_path):
        good = write(tmp_path / "good.parquet", spills(5))
        bad = write(tmp_path / "bad.parquet", spills(5, first=10).drop("open"))
        report = ingest(settings, SPILLS, [bad, good])
        assert [s.status for s in report.sources] == ["refused", "ingested"]
        assert "bad.parquet lacks the columns open" in report.refused[0].reason
        assert stored(settings).equals(spills(5))
        check_counts(settings, report)

    def test_a_copy_of_a_refused_file_is_refused_too(self, settings, tmp_path):
        for name in ("a.jsonl", "b.jsonl"):
            (tmp_path / name).write_text('{"id": 1}\n')
        sources = [FileSource(path=tmp_path / name) for name in ("a.jsonl", "b.jsonl")]
        report = ingest(settings, SPILLS, sources)
        assert [s.status for s in report.sources] == ["refused", "refused"]
        assert "same bytes as" in report.refused[1].reason
        assert "lacks the columns at" in report.refused[1].reason
        check_counts(settings, report)

    def test_a_file_that_breaks_half_way_leaves_nothing(self, settings, tmp_path):
        lines = spills(50).with_columns(pl.col("at").dt.to_string("iso")).write_ndjson()
        (tmp_path / "x.jsonl").write_text(lines + "{broken\n")
        report = ingest(settings, SPILLS, [FileSource(path=tmp_path / "x.jsonl")])
        assert "line 51 is not JSON" in report.refused[0].reason
        assert not tables.exists(settings, SPILLS.name)

    def test_bad_rows_go_to_quarantine_and_stay_countable(self, settings, tmp_path):
        frame = spills(10).with_columns(
            litres=pl.when(pl.col("id") == 3).then(-1.0).otherwise(pl.col("litres"))
        )
        report = ingest(settings, SPILLS, [write(tmp_path / "x.parquet", frame)])
        assert report.sources[0].broken_rules == {"litres: in_range(0, 1000)": 1}
        bad = quarantine.read(settings, SPILLS.name).collect().row(0, named=True)
        assert (bad["row"], bad["column"], bad["value"]) == (3, "litres", "-1.0")
        assert bad["source"].endswith("x.parquet")
        check_counts(settings, report)

    def test_a_key_stays_with_its_first_row(self, settings, tmp_path):
        first = pl.concat([spills(5), spills(1, first=2)])
        report = ingest(settings, SPILLS, [write(tmp_path / "a.parquet", first)])
        assert report.sources[0].broken_rules == {"id: unique": 1}
        later = spills(4, first=3).with_columns(gate=pl.lit("south"))
        report = ingest(settings, SPILLS, [write(tmp_path / "b.parquet", later)])
        assert report.sources[0].broken_rules == {"id: unique": 2}
        assert stored(settings)["id"].to_list() == list(range(7))
        bad = quarantine.read(settings, SPILLS.name).collect().sort("ingested_at", "row")
        assert bad.select("row", "value").rows() == [(5, "2"), (0, "3"), (1, "4")]
        check_counts(settings, report)

    def test_a_column_wholly_of_another_type_refuses_the_file(self, settings, tmp_path):
        rows = spills(3).with_columns(pl.col("at").dt.to_string("iso"), open=pl.lit("perhaps"))
        rows.write_csv(tmp_path / "x.csv")
        report = ingest(settings, SPILLS, [FileSource(path=tmp_path / "x.csv")])
        assert "none of the 3 values in column open is of its type" in report.refused[0].reason

    def test_a_file_of_bad_rows_only_is_remembered(self, settings, tmp_path):
        frame = spills(3).with_columns(gate=pl.lit("east"))
        source = write(tmp_path / "x.parquet", frame)
        report = ingest(settings, SPILLS, [source])
        assert (report.version, report.num_kept, report.num_quarantined) == (0, 0, 3)
        assert ingest(settings, SPILLS, [source]).sources[0].status == "already"
        check_counts(settings, report)

    def test_the_same_rows_of_a_query_land_once(self, settings, tmp_path):
        rows = spills(4).with_columns(pl.col("at").dt.to_string("iso"), open=pl.lit("x"))
        with sqlite3.connect(tmp_path / "x.db") as connection:
            connection.execute("create table s (id int, at text, litres real, gate text)")
            connection.executemany("insert into s values (?, ?, ?, ?)", rows.drop("open").rows())
        connection.close()
        table = get_table_without_open()
        given_ = {"url": f"sqlite:///{tmp_path}/x.db", "query": "select * from s"}
        source = SqlSource.model_validate(given_)
        assert ingest(settings, table, [source]).num_kept == 4
        assert ingest(settings, table, [source]).sources[0].status == "already"

    def test_two_ingests_at_once_both_land(self, settings, tmp_path):
        sources = [write(tmp_path / f"{n}.parquet", spills(50, first=40 * n)) for n in range(4)]
        reports = []
        workers = [
            threading.Thread(target=lambda s=s: reports.append(ingest(settings, SPILLS, [s])))
            for s in sources
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        assert sum(r.num_kept for r in reports) == 170
        assert stored(settings)["id"].to_list() == list(range(170))
        assert quarantine.read(settings, SPILLS.name).collect().height == 30

    def test_the_staging_folder_is_gone_afterwards(self, settings, tmp_path):
        ingest(settings, SPILLS, [write(tmp_path / "x.parquet", spills(3))])
        left = [p for p in (settings.storage_path / "staging").rglob("*") if p.name != ".lock"]
        assert left == [settings.storage_path / "staging" / SPILLS.name]


def get_table_without_open():
    import pandera.polars as pa

    from penstock.data.contracts import Table

    columns = {k: v for k, v in SPILLS.schema.columns.items() if k != "open"}
    return Table(
        name="river.spills", event_time="at", key=("id",), schema=pa.DataFrameSchema(columns)
    )


cells = st.one_of(
    st.none(), st.booleans(), st.integers(-5, 5), st.integers(), st.floats(),
    st.sampled_from(["north", "2024-05-01T10:00:00Z", "7", "NaN", "", "x,y", 'a"b', "é\n"]),
)  # fmt: skip


def as_csv(rows):
    text = io.StringIO()
    import csv

    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPILLS.columns)
    for row in rows:
        writer.writerow(["" if v is None else v for v in row])
    return text.getvalue().encode()


def as_jsonl(rows):
    records = (dict(zip(SPILLS.columns, row, strict=True)) for row in rows)
    # orjson writes NaN as null and refuses wide integers, as a careful writer would.
    return b"".join(
        orjson.dumps({k: str(v) if _is_wide(v) else v for k, v in r.items()}) + b"\n"
        for r in records
    )


def _is_wide(value):
    return isinstance(value, int) and not -(2**63) <= value < 2**63


def as_parquet(_rows):
    content = io.BytesIO()
    spills(20).write_parquet(content)
    return content.getvalue()


class TestWhateverComes:
    """Any bytes are either refused, or every row that was read is kept or quarantined."""

    @examples(
        max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
    )
    @given(
        rows=st.lists(st.tuples(*[cells] * 5), min_size=1, max_size=6),
        form=st.sampled_from([("csv", as_csv), ("jsonl", as_jsonl), ("parquet", as_parquet)]),
        data=st.data(),
    )  # fmt: skip
    def test_a_file_is_refused_or_its_rows_are_counted(self, tmp_path_factory, rows, form, data):
        suffix, writer = form
        content = writer(rows)
        damage = data.draw(st.sampled_from(["none", "cut", "flip"]))
        at = data.draw(st.integers(0, len(content) - 1))
        if damage == "cut":
            content = content[:at]
        elif damage == "flip":
            content = content[:at] + bytes([content[at] ^ 1 << at % 8]) + content[at + 1 :]
        folder = tmp_path_factory.mktemp("any")
        path = folder / f"x.{suffix}"
        path.write_bytes(content)
        settings = settings_in(folder)
        report = ingest(settings, SPILLS, [FileSource(path=path)])
        check_counts(settings, report)
        if tables.exists(settings, SPILLS.name):
            assert stored(settings).height == report.num_kept
            assert quarantine.read(settings, SPILLS.name).collect().height == report.num_quarantined
        else:
            assert report.refused
        if suffix == "parquet" and damage == "cut":
            assert report.refused
        if suffix != "parquet" and damage == "none" and not report.refused:
            assert report.num_read == len(rows)


class TestRealInput:
    def test_a_month_of_published_payments_is_kept_whole(self, settings):
        table = get_table(Settings(project_root=REPO_ROOT), "card_fraud.transactions")
        sources = [FileSource(path=path) for path in card_fraud_files("2018-04")]
        report = ingest(settings, table, sources)
        assert (report.num_read, report.num_quarantined) == (288_062, 0)
        frauds = tables.scan(settings, table.name).select(pl.col("TX_FRAUD").sum()).collect()
        assert frauds.item() == 1_702
