import orjson
import pytest
from typer.testing import CliRunner

from data_room import spills
from penstock.cli.main import app
from penstock.data import quarantine, tables
from penstock.errors import NotFoundError, UserError
from penstock.settings import Settings
from real_data import REPO_ROOT

NAME = "card_fraud.spills"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run `penstock data …` in this process on a table of two versions with one bad row."""
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))
    settings = Settings(project_root=REPO_ROOT)
    for number in range(2):
        tables.commit(
            settings, NAME, spills(3, first=3 * number), mode="append",
            transactions={quarantine.transaction(f"digest-{number}"): 1},
        )  # fmt: skip
    bad = quarantine.QUARANTINED.to_frame().clear(1).with_columns(
        source=_text("/data/x[1].csv"), digest=_text("digest-1"), row=4,
        column=_text("litres"), rule=_text("in_range(0, 1000)"), value=_text("-1"),
    )  # fmt: skip
    quarantine.put(settings, NAME, iter([bad]), ["digest-1"])

    def run_(*arguments):
        done = CliRunner().invoke(app, ["data", *arguments])
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done.stdout

    return run_


def _text(text):
    import polars as pl

    return pl.lit(text)


class TestLooking:
    def test_tables_are_listed_with_their_newest_version(self, run):
        listed = {t["table"]: t for t in orjson.loads(run("list", "--json"))}
        assert (listed[NAME]["version"], listed[NAME]["num_rows"]) == (1, 6)
        assert NAME in run("list")

    def test_any_version_is_shown_with_its_columns(self, run):
        shown = orjson.loads(run("show", NAME, "--version", "0", "--json"))
        assert shown["table"]["num_rows"] == 3
        assert shown["columns"][0]["max"] == 2
        text = run("show", NAME)
        assert "6 rows" in text
        assert "median" in text

    def test_an_unknown_version_is_the_users_mistake(self, run):
        with pytest.raises(NotFoundError, match="0 to 1"):
            run("show", NAME, "--version", "9")

    def test_the_history_is_newest_first(self, run):
        assert [v["version"] for v in orjson.loads(run("history", NAME, "--json"))] == [1, 0]
        assert "operation" in run("history", NAME, "--limit", "1")

    def test_the_quarantine_says_where_what_and_why(self, run):
        found = orjson.loads(run("quarantine", NAME, "--json"))
        assert found["rules"] == [{"column": "litres", "rule": "in_range(0, 1000)", "rows": 1}]
        assert found["rows"][0]["row"] == 4
        text = run("quarantine", NAME)
        assert "x[1].csv" in text
        assert "1 rows in quarantine" in text


class TestIngest:
    @pytest.mark.parametrize(
        "arguments",
        [(), ("x.parquet", "--url", "sqlite://", "--query", "select 1"), ("--query", "select 1")],
        ids=["nothing", "files and a query", "a query without url"],
    )
    def test_what_does_not_go_together_is_the_users_mistake(self, run, arguments):
        with pytest.raises(UserError, match="files, or --url with --query"):
            run("ingest", "card_fraud.transactions", *arguments)

    def test_an_undeclared_table_is_refused_before_any_job(self, run):
        with pytest.raises(NotFoundError, match="did you mean"):
            run("ingest", "card_fraud.transaction", "x.parquet")
