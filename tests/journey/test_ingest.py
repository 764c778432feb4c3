"""`penstock data` by its commands, with the job on the test run's Ray."""

import sqlite3

import polars as pl
import pytest

from data_room import SPILLS, spills
from penstock.cluster.job import connect
from penstock.cluster.jobs import run_job
from penstock.data import tables
from penstock.data.ingest import ingest
from penstock.data.source_kinds import FileSource, SqlSource
from penstock.errors import DataError
from penstock.settings import Settings

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def payments(tmp_path_factory, penstock):
    """A few simulated payments of a use case: one file, and the same with a fault in each."""
    out = tmp_path_factory.mktemp("payments")
    done = penstock("sample", "card_fraud", "--out", str(out), "--days", "3",
                    "--customers", "300", "--terminals", "3000", "--json")  # fmt: skip
    assert done.code == 0, done.stderr
    (path,) = done.json["files"]
    return path, pl.read_parquet(path)


@pytest.fixture(scope="module")
def ingested(payments, penstock, ray_cluster, tmp_path_factory):
    path, frame = payments
    bad = tmp_path_factory.mktemp("bad") / "bad.parquet"
    frame.drop("TX_AMOUNT").write_parquet(bad)
    some = frame.head(10).with_columns(
        TRANSACTION_ID=pl.col("TRANSACTION_ID") + 10**6,
        TX_AMOUNT=pl.when(pl.int_range(pl.len()) == 4).then(-1.0).otherwise(pl.col("TX_AMOUNT")),
    )
    some.write_csv(bad.with_name("some.csv"), datetime_format="%Y-%m-%dT%H:%M:%S")
    files = (path, str(bad), str(bad.with_name("some.csv")))
    return penstock("data", "ingest", "card_fraud.transactions", *files, "--json")


class TestIngestCommand:
    def test_a_query_that_is_gone_ends_the_job_as_wrong_input(self, project, ray_cluster, tmp_path):
        arguments = ["card_fraud.transactions", "--query-file", str(tmp_path / "gone.json")]
        with pytest.raises(DataError, match="holds no query") as refused:
            run_job(project.settings, "ingest", arguments)
        assert refused.value.exit_code == 2

    def test_a_refused_file_is_named_and_the_others_land(self, ingested, payments):
        assert ingested.code == 2, ingested.stderr
        assert "bad.parquet lacks the columns TX_AMOUNT" in ingested.stderr
        report = ingested.json
        assert [s["status"] for s in report["sources"]] == ["ingested", "refused", "ingested"]
        assert report["num_read"] == payments[1].height + 10
        assert (report["num_kept"], report["num_quarantined"]) == (payments[1].height + 9, 1)

    def test_a_query_lands_and_its_file_with_the_url_is_gone(
        self, ingested, payments, penstock, project, tmp_path
    ):
        rows = (
            payments[1]
            .head(5)
            .with_columns(
                pl.col("TRANSACTION_ID") + 2 * 10**6, pl.col("TX_DATETIME").dt.to_string("iso")
            )
        )
        with sqlite3.connect(tmp_path / "x.db") as connection:
            connection.execute(f"create table p ({', '.join(rows.columns)})")  # ours
            marks = ", ".join("?" * rows.width)
            connection.executemany(f"insert into p values ({marks})", rows.rows())  # noqa: S608  # ours
        connection.close()
        done = penstock("data", "ingest", "card_fraud.transactions", "--json",
                        "--url", f"sqlite:///{tmp_path}/x.db", "--query", "select * from p")  # fmt: skip
        assert done.code == 0, done.stderr
        assert done.json["num_kept"] == 5
        assert list((project.settings.storage_path / "queries").iterdir()) == []


class TestRayData:
    def test_much_is_read_by_ray_data_with_the_same_result(
        self, tmp_path, project, ray_cluster, monkeypatch
    ):
        import ray.data

        frame = spills(3000)
        frame.write_parquet(tmp_path / "x.parquet", row_group_size=500)
        frame.with_columns(pl.lit("east").alias("gate")).tail(5).write_parquet(
            tmp_path / "y.parquet"
        )
        (tmp_path / "z.parquet").write_bytes((tmp_path / "x.parquet").read_bytes()[:-9])
        sources = [FileSource(path=tmp_path / f"{name}.parquet") for name in "xyz"]
        monkeypatch.setattr("penstock.data.sources.RAY_DATA_THRESHOLD_BYTES", 0)
        monkeypatch.setattr("penstock.data.sources._UNIT_ROWS", 1000)
        datasets = []
        plain = ray.data.from_items
        monkeypatch.setattr(
            ray.data, "from_items", lambda *a, **k: datasets.append(plain(*a, **k)) or datasets[-1]
        )
        settings = Settings(project_root=tmp_path)
        connect(project.settings)
        report = ingest(settings, SPILLS, sources)
        assert [d.count() for d in datasets] == [4]
        assert [s.status for s in report.sources] == ["ingested", "ingested", "refused"]
        assert (report.num_kept, report.num_quarantined) == (3000, 5)
        assert tables.scan(settings, SPILLS.name).sort("id").collect().equals(frame)


@pytest.mark.servers
class TestPostgres:
    def test_a_query_on_postgres_lands_with_its_types_converted(self, tmp_path, postgres):
        import sqlalchemy

        url = postgres.create("river")
        engine = sqlalchemy.create_engine(url)
        with engine.begin() as connection:
            connection.execute(
                sqlalchemy.text(
                    "CREATE TABLE s (id bigint, at timestamptz, litres numeric, gate text, "
                    "open boolean)"
                )
            )
            rows = [*spills(500).to_dicts(), {**spills(1).to_dicts()[0], "id": -1}]
            insert = sqlalchemy.text("INSERT INTO s VALUES (:id, :at, :litres, :gate, :open)")
            connection.execute(insert, rows)
        engine.dispose()
        source = SqlSource.model_validate({"url": url, "query": "SELECT * FROM s ORDER BY id"})
        settings = Settings(project_root=tmp_path)
        report = ingest(settings, SPILLS, [source])
        assert (report.num_kept, report.num_quarantined) == (500, 1)
        assert tables.scan(settings, SPILLS.name).sort("id").collect().equals(spills(500))
        assert postgres.password not in report.model_dump_json()
        assert ingest(settings, SPILLS, [source]).sources[0].status == "already"
