import json

import pytest
from typer.testing import CliRunner

from payments import USE_CASE
from penstock.cli.main import app
from penstock.errors import NotFoundError, UserError
from real_data import REPO_ROOT


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("PENSTOCK_PROJECT_ROOT", str(REPO_ROOT))
    monkeypatch.setenv("PENSTOCK_STORAGE__ROOT", str(tmp_path))

    def invoke(*arguments: str) -> str:
        done = CliRunner().invoke(app, ["features", *arguments], catch_exceptions=False)
        assert done.exit_code == 0
        return done.stdout

    return invoke


class TestApply:
    def test_it_says_what_it_added_and_then_that_nothing_changed(self, run):
        assert "added" in run("apply", USE_CASE)
        assert run("apply", USE_CASE) == "nothing changed\n"

    def test_its_json_is_one_list_of_changes(self, run):
        changes = json.loads(run("apply", "--json"))
        assert {"kind": "services", "name": "card_fraud_v1", "change": "added"} in changes


class TestShow:
    def test_before_anything_was_done_it_says_so(self, run):
        shown = run("show", USE_CASE)
        assert "not built" in shown
        assert "not applied" in shown

    def test_its_json_has_the_features_of_each_service(self, run):
        [service] = json.loads(run("show", USE_CASE, "--json"))["services"]
        assert len(service["features"]) == 15


class TestBuild:
    def test_an_unknown_use_case_is_told_before_a_job_starts(self, run):
        with pytest.raises(NotFoundError, match="did you mean 'card_fraud'"):
            run("build", "card_frauds")


class TestMaterialize:
    def test_a_time_that_is_none_is_told_before_a_job_starts(self, run):
        with pytest.raises(UserError, match="ISO 8601"):
            run("materialize", USE_CASE, "--until", "yesterday")
