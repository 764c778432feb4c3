import orjson
import pytest
from typer.testing import CliRunner

from penstock.cli.main import app
from penstock.errors import NotFoundError
from real_data import REPO_ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["features", "stream", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return invoke


class TestStream:
    def test_of_one_that_never_ran_it_says_so(self, run):
        assert "card_fraud.transactions does not run; 0 flushes" in run("card_fraud", "--status")

    def test_its_json_has_the_positions(self, run):
        found = orjson.loads(run("card_fraud", "--status", "--json"))
        assert (found["is_running"], found["online"], found["version"]) == (False, {}, None)

    def test_a_use_case_without_streams_is_told_before_a_job_starts(self, run):
        with pytest.raises(NotFoundError, match="declared stream"):
            run("bike_demand")

    def test_a_wrong_table_is_answered_with_the_nearest(self, run):
        with pytest.raises(NotFoundError, match=r"card_fraud\.transactions"):
            run("card_fraud", "--table", "card_fraud.transaction")
